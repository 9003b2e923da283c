"""``tools/eval_quantized.py --config-file F MODEL.WEIGHTS W``: ``ssql-det sweep`` under Detectron2's habits."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
