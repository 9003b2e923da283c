"""``tools/eval_quantized.py --config-file F MODEL.WEIGHTS W``: the command ``ssql-det sweep``, as a script that torchrun can start."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
