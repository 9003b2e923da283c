"""A folder has one owner at a time, which a second one is told."""

import errno
import fcntl
import multiprocessing
import os
import socket
import time

import pytest

from ssql_det.core.errors import UserError
from ssql_det.core.run_folder import LOCK_NAME, owning_folder


def own(folder, ready, leave):
    """With a child process, as the workers of a data loader, which may live a moment longer than a killed run."""
    with owning_folder(folder):
        if not os.fork():
            wait_for(leave)
            os._exit(0)
        ready.touch()
        wait_for(leave)


def wait_for(file):
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def leave(tmp_path):
    return tmp_path / "leave"


@pytest.fixture
def owner(leave, tmp_path):
    """A process that owns the folder ``run`` until the file ``leave`` is there."""
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("fork").Process(target=own, args=(tmp_path / "run", ready, leave))
    process.start()
    wait_for(ready)
    yield process
    leave.touch()
    process.kill()
    process.join()


@pytest.mark.slow
def test_a_second_owner_is_told_who_the_first_is(owner, leave, tmp_path):
    message = rf"run is in use by process {owner.pid} on {socket.gethostname()}: .*; wait for it, or choose another"
    with pytest.raises(UserError, match=message), owning_folder(tmp_path / "run"):
        pass
    leave.touch()
    owner.join()
    with owning_folder(tmp_path / "run"):
        assert os.listdir(tmp_path / "run") == [".lock"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_folder_of_a_killed_owner_is_free(owner, tmp_path):
    owner.kill()
    owner.join()
    with owning_folder(tmp_path / "run"):
        (tmp_path / "run/made.txt").touch()
    assert os.listdir(tmp_path / "run") == ["made.txt"]


def test_a_folder_made_for_nothing_is_removed_and_no_other(tmp_path):
    (tmp_path / "before").mkdir()
    with pytest.raises(ZeroDivisionError), owning_folder(tmp_path / "before/a/b"):
        raise ZeroDivisionError
    with owning_folder(tmp_path / "before"):
        pass
    assert os.listdir(tmp_path) == ["before"]
    assert os.listdir(tmp_path / "before") == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_about_at_the_start(number, tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with owning_folder(tmp_path):
        assert "has no locks: start one run there at a time" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot write to .*file/run: Not a directory"),
        owning_folder(tmp_path / "file/run"),
    ):
        pass


def test_a_command_line_of_bytes_that_are_no_text_owns_too(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ssql-det", os.fsdecode(b"\xff")])
    with owning_folder(tmp_path):
        assert "\\udcff" in (tmp_path / LOCK_NAME).read_text()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("notes", path)])
def test_a_lock_that_is_no_file_is_refused_and_what_it_points_to_is_not_emptied(make, tmp_path):
    (tmp_path / "notes").write_text("theirs")
    make(tmp_path / ".lock")
    with (
        pytest.raises(UserError, match=r"\.lock is a link, a folder or a pipe, and no lock of a run; remove it"),
        owning_folder(tmp_path),
    ):
        pass
    assert (tmp_path / "notes").read_text() == "theirs"
