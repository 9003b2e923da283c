"""``tools/convert_checkpoint.py IN OUT --to FORMAT``: ``ssql-det convert``."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
