"""``tools/convert_checkpoint.py IN OUT --to FORMAT``: the command ``ssql-det convert``, as a script."""

import sys

from ssql_det.cli.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
