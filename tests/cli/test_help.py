"""Help texts: every command stands in a group and has two examples, which are right."""

import argparse
import shlex
import subprocess
import sys

import pytest

from ssql_det import d2
from ssql_det.cli.main import COMMANDS, GROUPS, main, make_parser
from ssql_det.cli.predict import _split_keys_and_images
from ssql_det.detect import SCOPES, SSQL_DET_DEFAULTS
from ssql_det.pretrain.config import read_config

EXAMPLES = [line for name in COMMANDS for line in COMMANDS.get(name).EXAMPLES]


def print_help(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == list(COMMANDS)


def test_the_help_lists_commands_by_group(capsys):
    lines = print_help(capsys).splitlines()
    for title, names in GROUPS.items():
        first = lines.index(f"{title}:") + 1
        assert [line.split()[0] for line in lines[first : first + len(names)]] == list(names)


@pytest.mark.parametrize("name", tuple(COMMANDS))
def test_the_help_of_a_command_ends_with_two_examples(name, capsys):
    examples = COMMANDS.get(name).EXAMPLES
    assert len(examples) == 2
    title, *lines = print_help(capsys, name).splitlines()[-3:]
    assert title == "examples:"
    assert [line.strip() for line in lines] == list(examples)
    assert all(line.split()[:2] == ["ssql-det", name] for line in examples)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_right(line):
    """The command takes its options, its config has the keys."""
    options = make_parser().parse_args(shlex.split(line)[1:])
    if getattr(options, "config_file", None) is not None:
        pairs = options.overrides if "overrides" in options else _split_keys_and_images(options.rest)[0]
        if options.command == "pretrain":
            read_config(options.config_file, pairs)
        else:
            d2.read_config(options.config_file, pairs, SSQL_DET_DEFAULTS)


def test_the_scopes_of_the_help_are_those_there_are(capsys):
    assert f"--scope {'|'.join(SCOPES)}" in print_help(capsys, "sweep")


@pytest.mark.parametrize("option", ["-V", "--version"])
@pytest.mark.slow
def test_the_package_is_a_program_too(option):
    ended = subprocess.run([sys.executable, "-m", "ssql_det", option], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("ssql-det ")


@pytest.mark.parametrize(("line", "completions"), [("ssql-det swe", {"sweep"}), ("ssql-det demo --si", {"--size"})])
@pytest.mark.slow
def test_the_shell_completes(line, completions, monkeypatch, tmp_path):
    pytest.importorskip("argcomplete")
    code = "from ssql_det.cli.main import main; main()"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {word.strip() for word in (tmp_path / "out").read_text().split("\n")} == completions


def test_a_command_of_a_plugin_needs_no_examples(monkeypatch, capsys):
    class Greet:
        """Greets."""

        HELP = "greet"
        add_arguments = staticmethod(lambda parser: None)
        run = staticmethod(lambda options: print("hello", type(options) is argparse.Namespace))

    monkeypatch.setitem(COMMANDS._objects, "greet", Greet)
    assert "\nMore:\n  greet" in print_help(capsys)
    assert "examples" not in print_help(capsys, "greet")
    main(["greet"])
    assert capsys.readouterr().out == "hello True\n"
