"""A command does its work whatever its streams are, and says at its end what could not be printed."""

import io
import logging
import os
import subprocess
import sys

import pytest

from ssql_det.core.console import print_next, print_table, set_up_logging, track
from ssql_det.core.errors import reporting_errors
from ssql_det.core.streams import LenientStream

LINE = "é中\udcff"
FULL = "error: could not write to stdout: No space left on device; redirect it elsewhere and run the command again\n"


def open_broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def open_full_disk():
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("count", [1, 100_000])  # less and more than a buffer
@pytest.mark.parametrize(
    ("open_stdout", "code", "message"), [(open_broken_pipe, 141, ""), (open_full_disk, 2, FULL)], ids=["pipe", "disk"]
)
def test_a_stdout_that_fails_is_reported_when_the_work_is_done(open_stdout, code, message, count, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", LenientStream(open_stdout(), None))
    done = []

    @reporting_errors()
    def work():
        print("x" * count, flush=True)
        print_table(["name"], [["x" * count]])
        done.append("work")
        sys.exit(0)  # as after --help

    with pytest.raises(SystemExit) as stopped:
        work()
    assert (done, stopped.value.code, capsys.readouterr().err) == (["work"], code, message)


def test_a_broken_pipe_that_is_not_stdout_is_a_bug(capsys):
    with pytest.raises(SystemExit) as stopped, reporting_errors():
        raise BrokenPipeError("of a worker")
    assert stopped.value.code == 1
    assert "BrokenPipeError: of a worker" in capsys.readouterr().err


@pytest.mark.parametrize("open_stderr", [open_broken_pipe, open_full_disk])
def test_a_stderr_that_fails_stops_nothing(open_stderr, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", LenientStream(open_stderr(), None))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # for a progress bar
    set_up_logging(names=["ssql_det.of_this_test"])
    with reporting_errors():
        logging.getLogger("ssql_det.of_this_test").info(LINE)
        assert list(track([1, 2], LINE)) == [1, 2]
        print_next(LINE)
        print("result")
    assert capsys.readouterr() == ("result\n", "")


def test_a_character_that_the_encoding_lacks_is_escaped(tmp_path):
    with open(tmp_path / "out", "wb") as file:
        like = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        print(LINE, file=LenientStream(file.fileno(), like), flush=True)
    assert (tmp_path / "out").read_text() == "\\xe9\\u4e2d\\udcff\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "printed"),
    [
        ("echo 'import os; assert os.open(os.devnull, 0) > 2' >own.py; $RUN --plugin own configs <&- >&- 2>&-", 0, ""),
        ("$RUN tables --table 6 >&-", 0, ""),
        ("$RUN tables --table 6 --out é中.md 2>&-", 0, ""),
        ("PYTHONIOENCODING=ascii $RUN tables --table 6 --dataset é中 | grep -o -m1 'xe9.u4e2d'", 0, "xe9\\u4e2d\n"),
        (
            "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 $RUN tables --table 6 --dataset é中 --format csv --out é中",
            0,
            "",
        ),
        ("$RUN tables --table 6 --out é中.md 2>/dev/full", 0, ""),
        ("$RUN --help | true", 141, ""),
        ("PYTHONUNBUFFERED=1 $RUN configs >/dev/full", 2, ""),
    ],
)
def test_a_command_ends_with_its_streams_in_any_state(line, code, printed, tmp_path):
    run = f"RUN='{sys.executable} -m ssql_det'; set -o pipefail; {line}"
    ended = subprocess.run(["bash", "-c", run], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, "Error" in ended.stderr) == (code, printed, False), ended.stderr
