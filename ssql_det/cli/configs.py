"""List the configs that come with ssql_det, each with a line on what it is for.

Wherever a command takes --config-file, a config's name will do, in any folder. `--show NAME` prints the file.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import PurePosixPath

HELP = "list the configs that come with ssql_det"
EXAMPLES = ("ssql-det configs", "ssql-det configs --show pretrain/mini")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show", metavar="NAME", help="print this config instead, such as pretrain/mini")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.config_files import describe_config, find_config, list_configs
    from ssql_det.core.console import print_next

    if options.show:
        print(find_config(options.show).read_text("utf-8"), end="")
        return
    width = max(map(len, list_configs()))
    for folder, names in groupby(list_configs(), lambda name: str(PurePosixPath(name).parent)):
        print(f"{folder}:")
        for name in names:
            print(f"  {name:{width}}  {describe_config(name)}")
        print()
    print_next("configs", "--show", list_configs()[0])
