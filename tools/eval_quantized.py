"""``tools/eval_quantized.py --config-file F MODEL.WEIGHTS W``: ``ssql-det sweep``, also under torchrun."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
