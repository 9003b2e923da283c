"""``tools/pretrain.py --config-file F KEY VALUE``: ``ssql-det pretrain``, also under torchrun."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
