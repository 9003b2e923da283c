import errno
import os
import signal
import threading

import pytest
import torch

from ssql_det.core.errors import (
    DEBUG_VARIABLE,
    REPORT_LINE,
    Terminated,
    UserError,
    did_you_mean,
    raising_on_termination,
    reporting_errors,
)


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch):
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)


def report(raised, capsys):
    """The exit code and the lines on stderr."""
    with pytest.raises(SystemExit) as stopped, reporting_errors():
        raise raised
    output = capsys.readouterr()
    assert output.out == ""
    return stopped.value.code, output.err.splitlines()


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("bits must be 2 to 16"), 2, "error: bits must be 2 to 16"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
    ],
)
def test_a_mistake_and_a_signal_are_one_line(raised, code, line, capsys):
    assert report(raised, capsys) == (code, [line])


def test_only_the_first_process_of_a_job_reports_a_signal(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert report(Terminated(), capsys) == (143, [])


def _make_mistake_with_a_cause(text="no \x1b[31mkey"):
    try:
        raise KeyError(text)
    except KeyError as cause:
        error = UserError("the file is damaged; make it again")
        error.__cause__ = cause
        return error


def test_the_cause_of_a_mistake_is_a_line_before_it(capsys):
    code, (cause, sentence) = report(_make_mistake_with_a_cause(), capsys)
    assert code == 2
    assert cause.startswith(r"caused by KeyError: 'no \x1b[31mkey' (")
    line = _make_mistake_with_a_cause.__code__.co_firstlineno + 2
    assert cause.endswith(f"{os.path.basename(__file__)}:{line})")
    assert sentence == "error: the file is damaged; make it again"


def test_a_cause_without_a_traceback_or_of_many_lines_is_one_line(capsys):
    error = UserError("stop")
    error.__cause__ = ValueError("one\ntwo " + "x" * 1000)
    _, (cause, _) = report(error, capsys)
    assert cause.startswith("caused by ValueError: one two xxx")
    assert len(cause) < 400


def test_debugging_shows_the_traceback_and_the_sentence_stays_last(monkeypatch, capsys):
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    code, lines = report(_make_mistake_with_a_cause(), capsys)
    assert code == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert any(line.startswith("KeyError: ") for line in lines)
    assert lines[-1] == "error: the file is damaged; make it again"


BUGS = {
    "arithmetic": ZeroDivisionError("division by zero"),
    "shapes": RuntimeError("shapes do not match"),
    "words about memory from elsewhere": RuntimeError("my plugin: can't allocate memory, out of memory"),
    "OSError without a number": OSError("no profile found for this size"),
    "no connection": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "no path and not the disk": FileNotFoundError(errno.ENOENT, "No such file or directory"),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_bug_is_a_traceback_and_where_to_report_it(bug, capsys):
    code, lines = report(bug, capsys)
    assert code == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == f"{type(bug).__name__}: {bug}"
    assert lines[-1] == REPORT_LINE


MACHINE = {
    "a path": (
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null/absent"),
        "Not a directory: /dev/null/absent; check the path, its permissions and the disk",
    ),
    "a path with control characters": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a\nerror: \x1b[31mb"),
        r"No such file or directory: a\nerror: \x1b[31mb; check the path, its permissions and the disk",
    ),
    "a full disk": (
        OSError(errno.ENOSPC, "No space left on device"),
        "No space left on device; check the path, its permissions and the disk",
    ),
    "memory": (
        MemoryError(),
        "out of memory (the machine has no more); make images, batches or the network smaller",
    ),
    "memory of a GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore"),
        "out of memory (CUDA out of memory. Tried to allocate 9 GiB.); make images, batches or the network smaller",
    ),
}


@pytest.mark.parametrize(("failure", "sentence"), MACHINE.values(), ids=MACHINE)
def test_a_failure_of_the_machine_is_a_sentence_and_its_cause(failure, sentence, capsys):
    code, (cause, line) = report(failure, capsys)
    assert code == 2
    assert cause.startswith(f"caused by {type(failure).__name__}")
    assert line == f"error: {sentence}"


def test_the_words_of_torchs_cpu_allocator_are_known(capsys):
    with pytest.raises(SystemExit) as stopped, reporting_errors():
        torch.empty(1 << 50)
    assert stopped.value.code == 2
    assert "\nerror: out of memory ([enforce fail at alloc_cpu.cpp:" in capsys.readouterr().err


def test_sigterm_is_raised_inside_and_handled_as_before_outside():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), raising_on_termination():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_leaves_signals_alone():
    entered = []

    def enter():
        with raising_on_termination():
            entered.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]


def test_a_typo_is_answered_with_the_most_similar_name_or_with_nothing():
    assert did_you_mean("BASE_RL", ["SEED", "BASE_LR"]) == "; did you mean 'BASE_LR'?"
    assert did_you_mean("zebra", ["SEED", "BASE_LR"]) == ""
