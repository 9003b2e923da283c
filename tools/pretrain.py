"""``tools/pretrain.py --config-file F KEY VALUE``: the command ``ssql-det pretrain``, as a script that torchrun can start."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
