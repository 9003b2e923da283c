"""``tools/train_net.py --config-file F KEY VALUE``: the command ``ssql-det train-det``, as a script that torchrun can start."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["train-det", *sys.argv[1:]])
