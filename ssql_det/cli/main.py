"""The program ``ssql-det``. Each command is a module of this folder with ``HELP``, ``EXAMPLES``, ``add_arguments`` and
``run``.

A command of your own registers itself with ``COMMANDS.register("its-name")(sys.modules[__name__])`` and is loaded with
``--plugin its_module``; it needs no ``EXAMPLES``.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

from ssql_det import __version__, cli
from ssql_det.core.console import VERBOSE_VARIABLE
from ssql_det.core.errors import (
    DEBUG_VARIABLE,
    EXIT_BAD_INPUT,
    UserError,
    did_you_mean,
    raising_on_termination,
    reporting_errors,
)
from ssql_det.core.registry import Registry, import_inherited_plugins, import_modules, import_plugins


class Command(Protocol):
    HELP: str
    __doc__: str | None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def run(options: argparse.Namespace) -> None: ...


COMMANDS: Registry[Command] = Registry("command")
GROUPS = {
    "Data": ("make-toy-data", "check-data"),
    "Pretrain": ("pretrain", "probe", "analyze"),
    "Detect": ("train-det", "quantize", "sweep", "sensitivity", "search", "predict"),
    "Deploy": ("export", "run", "bench"),
    "Report": ("report", "tables", "reproduce"),
    "Convert": ("convert", "inspect"),
    "Explore": ("demo", "configs"),
}
_OTHERS = "More"  # commands of plugins
_REQUIREMENTS = (  # modules of the packages in setup.py; where only `run` is used, most of them are not installed
    *("torch", "torchvision", "timm", "numpy", "fvcore", "iopath", "pycocotools", "cv2", "PIL", "yaml", "rich"),
    *("tabulate", "termcolor", "tensorboard", "sklearn", "scipy", "threadpoolctl", "safetensors"),
)
_HELP_COLUMN = 17

for _module in import_modules(cli.__name__, cli.__path__):
    if hasattr(_module, "HELP"):
        COMMANDS.register(_module.__name__.rpartition(".")[2].replace("_", "-"))(_module)  # type: ignore[arg-type]

_ON_IMPORTING_FVCORE = "`torch.jit.script` is deprecated"


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other mistake: one sentence, exit code 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> None:
    warnings.filterwarnings("ignore", _ON_IMPORTING_FVCORE, FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", f"ignore:{_ON_IMPORTING_FVCORE}:FutureWarning")  # for further processes
    with raising_on_termination(), reporting_errors():
        import_inherited_plugins()
        if "_ARGCOMPLETE" in os.environ:
            _complete()
        plugins, rest = _take_global_options(sys.argv[1:] if arguments is None else arguments)
        import_plugins(plugins)
        _check_command(rest)
        parser = make_parser()
        options = parser.parse_args(rest)
        if options.command is None:
            parser.print_help()
            raise SystemExit(EXIT_BAD_INPUT)
        try:
            options.run(options)
        except ModuleNotFoundError as missing:
            if missing.name not in _REQUIREMENTS:
                raise
            raise UserError(
                f"`ssql-det {options.command}` needs {missing.name}, which is not installed; install it, or all that "
                "ssql_det requires with pip install ssql_det"
            ) from missing


def _take_global_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off ``--plugin``, ``--debug`` and ``--verbose``, which may stand anywhere, also behind KEY VALUE pairs.

    Returns the plugins' modules and the rest of the line; the other two become environment variables, for further
    processes too.
    """
    switches = {"--debug": DEBUG_VARIABLE, "--verbose": VERBOSE_VARIABLE, "-v": VERBOSE_VARIABLE}
    plugins, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        option, has_value, value = argument.partition("=")
        if argument in switches:
            os.environ[switches[argument]] = "1"
        elif option != "--plugin":
            rest.append(argument)
        elif name := value if has_value else next(remaining, ""):
            plugins.append(name)
        else:
            raise UserError("--plugin needs a module's name: --plugin my_module")
    return plugins, rest


def _check_command(arguments: Sequence[str]) -> None:
    """Reject an unknown command with the most similar one; argparse would only list them all."""
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        known = ", ".join(name for names in _group_commands().values() for name in names)
        raise UserError(
            f"there is no command {name!r}{did_you_mean(name, COMMANDS)} (known: {known}); see `ssql-det --help`"
        )


def _group_commands() -> dict[str, tuple[str, ...]]:
    grouped = {name for names in GROUPS.values() for name in names}
    others = tuple(name for name in COMMANDS if name not in grouped)
    return {**GROUPS, _OTHERS: others} if others else GROUPS


def _complete() -> None:
    """Answer the shell, which asks for completions in this way."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        raise UserError("completion needs argcomplete: pip install 'ssql_det[completion]'") from None
    argcomplete.autocomplete(make_parser())


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ssql-det",
        usage="%(prog)s [options] <command> ...",
        description="Pretrain a ResNet that survives quantization and measure its detector at every bit-width.",
        epilog="\n".join(_list_commands()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    _add_global_options(parser)
    subparsers = parser.add_subparsers(prog="ssql-det", dest="command", help=argparse.SUPPRESS)  # the epilog lists them
    for names in _group_commands().values():
        for name in names:
            command = COMMANDS.get(name)
            subparser = subparsers.add_parser(
                name,
                description=command.__doc__,
                epilog=_format_examples(getattr(command, "EXAMPLES", ())),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            command.add_arguments(subparser)
            _add_global_options(subparser.add_argument_group("options of every command"))
            subparser.set_defaults(run=command.run)
    return parser


def _list_commands() -> Iterator[str]:
    """Each command with its purpose, below the title of its group."""
    for title, names in _group_commands().items():
        yield f"{title}:"
        yield from (f"  {name:{_HELP_COLUMN}}{COMMANDS.get(name).HELP}" for name in names)
        yield ""
    yield "`ssql-det <command> --help` shows a command's options and examples."


def _format_examples(lines: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else ""


def _add_global_options(parser: argparse._ActionsContainer) -> None:
    """For ``--help`` alone: the values are taken from the line before it is parsed."""
    parser.add_argument("--plugin", metavar="MODULE", help="import your own module first")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the engine's log lines too")
    parser.add_argument("--debug", action="store_true", help="show the traceback behind a mistake")
