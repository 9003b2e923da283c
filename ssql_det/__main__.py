"""``python -m ssql_det COMMAND ...``: the program ``ssql-det``."""

from ssql_det.cli.main import main

if __name__ == "__main__":
    main()
