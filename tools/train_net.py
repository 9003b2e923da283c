"""``tools/train_net.py --config-file F KEY VALUE``: ``ssql-det train-det``, also under torchrun."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["train-det", *sys.argv[1:]])
