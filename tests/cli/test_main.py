import resource
import subprocess
import sys

import pytest

from ssql_det import __version__
from ssql_det.cli.main import main

WITHOUT_TORCH = """
import sys
from ssql_det.cli.main import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda: None)


def exit_code(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--help"], "demo"), (["--version"], __version__), (["demo", "--help"], "--arch"), (["demo", "--siez"], "")],
    ids=["help", "version", "help of a command", "mistake"],
)
@pytest.mark.slow
def test_help_and_mistakes_are_answered_in_a_second_and_without_torch(arguments, said):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Traceback" not in ended.stderr
    assert ended.returncode == (0 if said else 2)
    assert said in ended.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1  # seconds of the processor


def test_no_command_is_answered_with_the_help(capsys):
    assert exit_code() == 2
    assert capsys.readouterr().out.startswith("usage: ssql-det")


MISTAKES = {
    "dmeo": "there is no command 'dmeo'; did you mean 'demo'? (known: make-toy-data, check-data, ",
    "--fast": "see `ssql-det --help`",
    "demo --fast": "unrecognized arguments: --fast",
    "demo --size big": "argument --size: 'big' is not a whole number, 1 or more; see `ssql-det demo --help`",
    "demo --size 5": "--size must be 32 to ",
    "demo --size 5000": "--size must be 32 to ",
    "demo --arch nonsense": "there is no backbone 'nonsense'",
    "demo --arch resnet81": "'resnet81'; did you mean 'resnet18'?",
    "demo --bits 4x4": "'4x4'",
    "demo --bits 99w8a": "got 99",
    "demo --bits=": "''",
    "demo --scheme minmx": "unknown weight quantizer 'minmx'; did you mean 'minmax'? (known: adaround, brecq, ",
    "demo --scheme weight=percentile": "'percentile' is no weight quantizer; use one of",
    "demo --scheme act=mse --bits 12": "act=mse supports 2 to 10 bits, not 12",
}


@pytest.mark.parametrize(("line", "said"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(line, said, capsys):
    assert exit_code(*line.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert said in output.err
    assert output.err.count("\n") == 1


def test_the_demo_shows_that_fewer_bits_cost_more_error_and_less_space(capsys):
    main(["demo", "--size", "64"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {cells[0]: [float(cell) for cell in cells[1:]] for cells in lines if len(cells) == 5 and cells[0] != "bits"}
    assert list(table) == ["FP", "8w8a", "6w6a", "5w5a", "4w4a", "2w4a"]
    cosine, error, size, operations = zip(*table.values(), strict=True)
    assert (cosine[0], error[0]) == (1, 0)
    assert list(cosine) == sorted(cosine, reverse=True)
    assert list(error) == sorted(set(error))
    assert list(size) == sorted(set(size), reverse=True)
    assert list(operations) == sorted(set(operations), reverse=True)
