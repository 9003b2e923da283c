import io
import logging
import sys

import pytest

from ssql_det.core import console
from ssql_det.core.console import print_table, set_up_logging, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still, and a function to move it on."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def loggers():
    """Names of loggers that no other test knows."""
    names = ("of_this_test", "of_this_test_too")
    yield names
    for name in names:
        logging.getLogger(name).handlers.clear()


@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
@pytest.mark.parametrize("items", [[3, None, 3], [], [[]]])
@pytest.mark.parametrize("kind", [list, iter])
def test_track_yields_every_item_unchanged(kind, items, stderr, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr())
    tracked = list(track(kind(items), "counting"))
    assert len(tracked) == len(items)
    assert all(one is other for one, other in zip(tracked, items, strict=True))


def test_off_a_terminal_progress_is_a_line_every_ten_seconds(clock, capsys):
    for _ in track(range(40), "counting"):
        clock(1)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "counting: 10 of 40, 30 s left",
        "counting: 20 of 40, 20 s left",
        "counting: 30 of 40, 10 s left",
        "counting: 40 of 40, 0 s left",
    ]


def test_progress_of_unknown_length_says_how_far(clock, capsys):
    for _ in track(iter("abc"), "counting"):
        clock(4)
    assert capsys.readouterr().err == "counting: 3\n"


def test_progress_of_a_quick_loop_says_nothing(capsys):
    assert sum(track(range(10), "counting")) == 45
    assert capsys.readouterr().err == ""


def test_on_a_terminal_progress_is_a_bar_that_goes_away(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(track(range(3), "counting [bold]"))
    assert "counting [bold]" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\x1b[2K")


def test_without_rich_a_terminal_shows_lines(clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in track(range(2), "counting"):
        clock(6)
    assert sys.stderr.getvalue() == "counting: 2 of 2, 0 s left\n"


@pytest.mark.parametrize("has_rich", [True, False])
def test_a_table_in_a_pipe_is_plain_and_whole(has_rich, capsys, monkeypatch):
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    long = "runs/" + "x" * 300
    print_table(("checkpoint", "AP"), [(long, "61.2"), ("short", "5.0")], "a title")
    said = capsys.readouterr()
    assert said.err == ""
    assert "\x1b" not in said.out
    title, header, *rows = [line.rstrip() for line in said.out.splitlines() if line.strip(" ─")]
    assert (title, header.split()) == ("a title", ["checkpoint", "AP"])
    assert [row.split() for row in rows] == [[long, "61.2"], ["short", "5.0"]]
    assert len({row.rindex(".") for row in rows}) == 1  # numbers stand right, so their points are in line


@pytest.mark.parametrize("has_rich", [True, False])
def test_a_tables_cells_are_taken_literally(has_rich, capsys, monkeypatch):
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    print_table(("name", "AP"), [("runs/[bold]/:smile:", "[1]")], "of [red]")
    said = capsys.readouterr().out
    assert all(text in said for text in ("runs/[bold]/:smile:", "[1]", "of [red]"))


def test_log_lines_come_once_however_often_logging_is_set_up(loggers, capsys, caplog):
    for _ in range(3):
        set_up_logging(names=loggers)
    for name in loggers:
        logging.getLogger(name).info("said once")
        logging.getLogger(f"{name}.part").info("said once")
    assert caplog.records == []  # the root logger, whoever listens there, does not say them again
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        f"{name}] said once" for logger in loggers for name in (logger, f"{logger}.part")
    ]


def test_logging_leaves_other_handlers_alone_and_minds_the_level(loggers, capsys):
    other = logging.NullHandler()
    logging.getLogger(loggers[0]).addHandler(other)
    set_up_logging(logging.WARNING, loggers)
    set_up_logging(logging.WARNING, loggers)
    logging.getLogger(loggers[0]).info("not said")
    assert other in logging.getLogger(loggers[0]).handlers
    assert capsys.readouterr().err == ""
