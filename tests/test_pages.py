"""What README, CONTRIBUTING and docs tell people to do works: commands, blocks of Python, links.

Commands are given to the parsers that would take them, and their configs to the readers of configs; nothing is trained,
installed or fetched. A program that is not known here is a failure, so that no command goes unseen.
"""

import argparse
import ast
import os
import re

import pytest
from support.convert.checkpoints import write_checkpoint_file
from support.pages import ROOT, at, called, check_link, commands, links, parser_of, python_blocks
from torch.distributed.run import get_args_parser

from ssql_det import d2
from ssql_det.cli.main import make_parser
from ssql_det.cli.predict import _split_keys_and_images
from ssql_det.core.config import config_keys
from ssql_det.core.config_files import find_config
from ssql_det.core.errors import UserError
from ssql_det.detect import SSQL_DET_DEFAULTS
from ssql_det.pretrain.config import default_values, read_config

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
WITH_A_MODULE = ROOT / "docs/extending.md"  # its commands and its code are run in detect/test_extending.py
AS_IS = (
    ".",
    "source",
    "cd",
    "eval",
    "export",
    "for",
    "mkdir",
    "cp",
    "mv",
    "git",
    "conda",
    "pip",
    "venv",
    "ruff",
    "mypy",
)  # not ours, not judged
is_placeholder = re.compile(r"[A-Z][A-Z0-9_]*(\.[a-z]+)?|<.*>|.*(\$|\.\.\.).*").fullmatch  # FILE, OUT.png, <run>, $run
FILES = {"moco_v2.pth.tar": "MoCo v2"}  # what blocks of Python read; made first


def check(piece, config):
    if not piece.words:
        return check_link(piece)
    assert not re.search(r"\$\(|`", " ".join(piece.words)), "a command within a command is not looked at"
    words = piece.words if piece.is_whole else [word.strip("[]") for word in piece.words]  # [--option]
    words = [word for word, before in zip(words, ["", *words], strict=False) if word != "..." or before[:2] == "--"]
    program, *arguments = words
    program = re.sub(r"^\.?venv/bin/", "", program)
    if program in ("python", "python3") and arguments[:1] == ["-m"]:
        program, *arguments = arguments[1:]
    if program == "pytest":
        check_pytest(arguments, config)
    elif program in CHECKS:
        if piece.is_whole or (arguments and not is_placeholder(arguments[0])):  # else it is but named
            CHECKS[program](arguments, piece.is_whole)
    elif not piece.is_whole and not arguments:
        assert is_placeholder(program) or any(ROOT.glob(program)), f"there is no {program}"
    else:
        assert "/" in program, f"{program} is not known here"
        assert not piece.is_whole or os.access(ROOT / program, os.X_OK), f"{program} cannot be executed"
        check_file(program, arguments, piece.is_whole)


def check_ssql_det(arguments, is_whole):
    parser = make_parser()
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    command = commands.choices.get(arguments[0], parser)
    options = read(parser, arguments, is_whole, command)
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert option in command._option_string_actions, f"{arguments[0]} has no option {option}"  # nor a longer one
    if "config_file" in options:
        pairs = options.overrides if "overrides" in options else _split_keys_and_images(options.rest)[0]
        check_config(options.command, options.config_file, pairs)


def read(parser, arguments, is_whole, inner=None):
    """The options; in running text arguments may be missing, and a placeholder may stand for a number."""
    for action in (inner or parser)._actions:
        action.required &= is_whole
        if kind := action.type:
            action.type = lambda text, kind=kind: text if is_placeholder(text) else kind(text)
    return parser.parse_args(arguments)


def find_page_config(file):
    try:
        return find_config(ROOT / file if (ROOT / file).is_file() else file)
    except UserError as mistake:
        raise AssertionError(f"there is no config {file}") from mistake


def check_config(command, file, overrides):
    """The file is there, and the command takes it and the pairs; where a value is left open, only its key is judged."""
    is_named = file and not is_placeholder(file) and not file.startswith("runs/")  # what a run saves is not here
    path = find_page_config(file) if is_named else None
    words = [word for word in overrides if word not in ("...", "KEY", "VALUE")]
    assert len(words) % 2 == 0, f"{words[-1]} stands alone behind KEY VALUE pairs"
    pairs = [*zip(words[::2], words[1::2], strict=True)]
    closed = [word for pair in pairs if not is_placeholder(pair[1]) for word in pair]
    given = (path, closed)
    if command == "pretrain":
        read_config(*given)
        known = default_values().keys()
    else:
        known = set(config_keys(d2.read_config(*given, SSQL_DET_DEFAULTS)))
    for key, _ in pairs:
        assert key in known, f"unknown config key {key}"


def check_file(name, arguments, is_whole):
    assert (ROOT / name).is_file(), f"there is no {name}"
    text = (ROOT / name).read_text("utf-8")
    if "run_study" in text:  # the command line of all studies
        text = (ROOT / "benchmarks/toy_detectors.py").read_text("utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)] if name.endswith(".py") else []
    added = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
    if name.startswith("tools/"):
        (command,) = (call.args[0].elts[0].value for call in calls if getattr(call.func, "id", "") == "main")
        check_ssql_det([command, *arguments], is_whole)
    elif added:
        options = read(parser_of(added), arguments, is_whole)
        check_config("pretrain", None, getattr(options, "changes", []))
    else:
        assert not arguments or "sys.argv" in text or "${1" in text, f"{name} takes no arguments"


def check_python(arguments, is_whole):
    if arguments[0] == "-c":
        exec(compile(arguments[1], "-c", "exec"), {"__name__": "__main__"})
    else:
        check_file(arguments[0], arguments[1:], is_whole)


def check_torchrun(arguments, is_whole):
    options = get_args_parser().parse_args(arguments)
    check_file(options.training_script, options.training_script_args, is_whole)


def check_sbatch(arguments, is_whole):
    script = arguments.index("tools/slurm.sh")
    check_file(f"tools/{arguments[script + 1]}", arguments[script + 2 :], is_whole)


def check_pytest(arguments, config):
    options = config._parser.parse(arguments)
    for test in options.file_or_dir:
        path, *names = test.split("::")
        assert (ROOT / path).exists(), f"there is no {path}"
        assert all(name in (ROOT / path).read_text("utf-8") for name in names), f"there is no {test}"
    markers = {re.split(r"\W", line)[0] for line in config.getini("markers")}
    unknown = set(re.findall(r"\w+", options.markexpr)) - markers - {"and", "or", "not"}
    assert not unknown, f"no marker is called {', '.join(unknown)}"


CHECKS = dict.fromkeys(AS_IS, lambda arguments, is_whole: None) | dict.fromkeys(("python", "python3"), check_python)
CHECKS |= {"ssql-det": check_ssql_det, "torchrun": check_torchrun, "sbatch": check_sbatch}


@pytest.mark.parametrize(
    "piece",
    [each for page in PAGES for each in (*([] if page == WITH_A_MODULE else commands(page)), *links(page))],
    ids=str,
)
def test_a_command_is_taken_and_a_link_leads_somewhere(piece, pytestconfig):
    with at(piece):
        check(piece, pytestconfig)


@pytest.mark.usefixtures("registries_as_they_were")
@pytest.mark.parametrize(
    "block", [each for page in PAGES if page != WITH_A_MODULE for each in python_blocks(page)], ids=str
)
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, source in FILES.items():
        if name in block.text:
            write_checkpoint_file(source, "resnet50", tmp_path)[0].rename(name)
    code = "\n" * (block.line - 1) + block.text  # a traceback shows the page's lines
    exec(compile(code, called(block.page), "exec"), {"__name__": "__main__"})


RIGHT = r"""# What you `may` write

```bash
# a comment; with a semicolon
A=b ssql-det demo --size 64 > log.txt 2>&1 && .venv/bin/ssql-det predict --config-file <your config> \
    --bits FP,4 MODEL.WEIGHTS $weights image.jpg | python3 -m pytest tests/test_pages.py::test_python_runs
torchrun --nproc-per-node 2 tools/pretrain.py --config-file F OPTIM.LR 0.1
for seed in 0 1; do ssql-det demo --seed $seed
done
```

`sweep --calib-images N [--bits-file FILE] ...`, or `python tests/support/{kills,networks}.py`, and `make all` is no
program of ours. [Here](#what-you-may-write), [`there`](pages.md "this page") and [elsewhere](https://example.org/#no).
"""
FOUND = [
    *("5 ssql-det demo", "5 .venv/bin/ssql-det predict", "5 python3 -m", "7 torchrun --nproc-per-node"),
    *("8 for seed", "8 ssql-det demo"),
    *("12 ssql-det sweep", "12 python tests/support/kills.py", "12 python tests/support/networks.py"),
    *("13 #what-you-may-write", "13 pages.md", "13 https://example.org/#no"),
]
WRONG = {  # on the third line of a page, or of a block there
    "ssql-det demo \\\n  --siez 64": "unrecognized arguments: --siez",
    "ssql-det demo --siz 64": "demo has no option --siz",
    "for a in b; do ssql-det demo --siez 64": "unrecognized arguments: --siez",
    "export A=b && A=b ssql-det sweep": "required: --config-file",
    "see `ssql-det sweep ... --bitts 4`": "unrecognized arguments: --bitts",
    "ssql-det dmeo": "invalid choice: 'dmeo'",
    "ssql-det sweep --config-file configs/no.yaml": "there is no config configs/no.yaml",
    "ssql-det sweep --config-file F SOLVER.BASE_RL 1": "unknown config key SOLVER.BASE_RL",
    "tools/pretrain.py --config-file F": "tools/pretrain.py cannot be executed",
    "torchrun tools/pretrain.py --config-file F MODEL.WEIGHTS $w": "unknown config key MODEL.WEIGHTS",
    "see `python benchmarks/mini_study.py out OPTIM.LE 1`": "unknown config key OPTIM.LE",
    "pytest tests/no.py": "there is no tests/no.py",
    "python -m pytest -m quick": "no marker is called quick",
    "make all | cat": "make is not known here",
    "[a](no.md)": "there is no no.md",
    "![a](pages.md#no)": "pages.md has no #no",
}


def judged(page, text, config):
    """What was found in a page, if all of it is right."""
    page.write_text(text)
    pieces = [*commands(page), *links(page)]
    for piece in pieces:
        with at(piece):
            check(piece, config)
    return [str(piece) for piece in pieces]


def test_all_is_found_and_what_is_right_passes(tmp_path, pytestconfig):
    assert judged(tmp_path / "pages.md", RIGHT, pytestconfig) == [f"pages.md:{found}" for found in FOUND]


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=WRONG)
def test_a_mistake_fails_with_its_page_and_line(text, said, tmp_path, pytestconfig):
    text = f"# Title\n\n{text}" if "`" in text or "](" in text else f"# Title\n```bash\n{text}\n```"
    with pytest.raises(AssertionError, match=f"^pages.md:3 .*{re.escape(said)}"):
        judged(tmp_path / "pages.md", text, pytestconfig)
