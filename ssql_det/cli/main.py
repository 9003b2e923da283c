"""The console script. A command is a module of this folder with ``HELP``, ``add_arguments`` and ``run``.

A user's own registers one with ``COMMANDS.register("its-name")(sys.modules[__name__])`` and is named by ``--plugin``.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol

from ssql_det import __version__, cli
from ssql_det.core.errors import EXIT_BAD_INPUT, UserError, did_you_mean, reporting_errors
from ssql_det.core.registry import Registry, import_inherited_plugins, import_modules, import_plugins


class Command(Protocol):
    HELP: str
    __doc__: str | None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def run(options: argparse.Namespace) -> None: ...


COMMANDS: Registry[Command] = Registry("command")
_IN_ORDER_OF_WORK = (
    *("demo", "make-toy-data", "check-data", "convert", "inspect"),
    *("pretrain", "probe", "analyze"),
    *("train-det", "sweep", "sensitivity", "predict", "tables", "reproduce"),
)


for _module in import_modules(cli.__name__, cli.__path__):
    if hasattr(_module, "HELP"):
        COMMANDS.register(_module.__name__.rpartition(".")[2].replace("_", "-"))(_module)  # type: ignore[arg-type]

_ON_IMPORTING_FVCORE = "`torch.jit.script` is deprecated"


class _Parser(argparse.ArgumentParser):
    """argparse's complaints in the project's own form: one sentence, exit code 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> None:
    warnings.filterwarnings("ignore", _ON_IMPORTING_FVCORE, FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", f"ignore:{_ON_IMPORTING_FVCORE}:FutureWarning")  # for further processes
    with reporting_errors():
        import_inherited_plugins()
        plugins, given = _without_plugins(sys.argv[1:] if arguments is None else arguments)
        import_plugins(plugins)
        _check_command(given)
        parser = _parser()
        options = parser.parse_args(given)
        if options.command is None:
            parser.print_help()
            raise SystemExit(EXIT_BAD_INPUT)
        options.run(options)


def _without_plugins(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What ``--plugin`` names, wherever it stands, and the rest: there may be no command without them."""
    plugins, rest, waiting = [], [], iter(arguments)
    for each in waiting:
        option, is_pair, value = each.partition("=")
        if option != "--plugin":
            rest.append(each)
        elif name := value if is_pair else next(waiting, ""):
            plugins.append(name)
        else:
            raise UserError("--plugin needs a module's name: --plugin my_module")
    return plugins, rest


def _check_command(arguments: Sequence[str]) -> None:
    """Before argparse, which would list all commands and not say which is near."""
    name = next((each for each in arguments if not each.startswith("-")), "demo")
    if name not in COMMANDS:
        near, known = did_you_mean(name, COMMANDS), ", ".join(_ordered())
        raise UserError(f"there is no command {name!r}{near} (known: {known}); see `ssql-det --help`")


def _ordered() -> list[str]:
    return [*_IN_ORDER_OF_WORK, *(name for name in COMMANDS if name not in _IN_ORDER_OF_WORK)]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssql-det",
        description="Pretrain a ResNet that survives quantization and measure its detector at every bit-width.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="<command>")
    for name in _ordered():
        command = COMMANDS.get(name)
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_arguments(subparser)
        subparser.add_argument("--plugin", metavar="MODULE", help="a module of yours that is imported first")
        subparser.set_defaults(run=command.run)
    return parser
