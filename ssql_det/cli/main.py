"""The console script. A command is a module of this folder with ``HELP``, ``add_arguments`` and ``run``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from ssql_det import __version__
from ssql_det.core.errors import EXIT_BAD_INPUT, UserError, did_you_mean, one_sentence

COMMANDS = (
    *("demo", "make-toy-data", "check-data", "convert", "inspect"),
    *("pretrain", "probe", "analyze"),
    *("train-det", "sweep", "sensitivity", "predict", "tables", "reproduce"),
)


_ON_IMPORTING_FVCORE = "`torch.jit.script` is deprecated"


class _Parser(argparse.ArgumentParser):
    """argparse's complaints in the project's own form: one sentence, exit code 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> None:
    warnings.filterwarnings("ignore", _ON_IMPORTING_FVCORE, FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", f"ignore:{_ON_IMPORTING_FVCORE}:FutureWarning")  # for further processes
    with one_sentence():
        given = sys.argv[1:] if arguments is None else arguments
        _check_command(given)
        parser = _parser()
        options = parser.parse_args(given)
        if options.command is None:
            parser.print_help()
            raise SystemExit(EXIT_BAD_INPUT)
        options.run(options)


def _check_command(arguments: Sequence[str]) -> None:
    """Before argparse, which would list all commands and not say which is near."""
    name = next((each for each in arguments if not each.startswith("-")), COMMANDS[0])
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        raise UserError(f"there is no command {name!r}{near} (known: {', '.join(COMMANDS)}); see `ssql-det --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssql-det",
        description="Pretrain a ResNet that survives quantization and measure its detector at every bit-width.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="<command>")
    for name in COMMANDS:
        command = importlib.import_module(f"ssql_det.cli.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
