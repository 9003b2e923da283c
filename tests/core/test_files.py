import hashlib
import os
import random
import socket
import subprocess
import sys
import time

import pytest
import torch

from ssql_det.core.errors import UserError
from ssql_det.core.files import (
    atomic_write,
    check_not_an_input,
    read_text,
    remove_all_leftovers,
    sha256,
    temporary_folder,
    temporary_path,
)

WRITE_UNTIL_KILLED = """
import sys
from ssql_det.core.files import atomic_write
while True:
    for letter in b"ab":
        with atomic_write(sys.argv[1]) as file:
            for _ in range(4):
                file.write(bytes([letter]) * (letter * 8000))
        print("written", flush=True)
"""
DIE_WHILE_WRITING = """
import os, signal, sys
from ssql_det.core.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""

DIE_IN_A_TEMPORARY_FOLDER = """
import os, pathlib, signal, sys
from ssql_det.core.files import temporary_folder
with temporary_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    return path


def test_an_input_is_refused_as_output(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    check_not_an_input(tmp_path / "b", [tmp_path / "a", tmp_path / "link", ""])
    for out in ("a", "link", "x/../a"):
        with pytest.raises(UserError, match=f"{out} is also an input, which would be overwritten"):
            check_not_an_input(tmp_path / out, [tmp_path / "b", tmp_path / "a"])


@pytest.mark.slow
def test_after_a_kill_at_any_moment_the_file_is_complete(target):
    complete = [bytes([letter]) * (letter * 8000 * 4) for letter in b"ab"]
    delays = random.Random(0)
    for _ in range(24):
        with subprocess.Popen([sys.executable, "-c", WRITE_UNTIL_KILLED, target], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(delays.uniform(0, 0.03))
            writer.kill()
        assert target.read_bytes() in complete


@pytest.mark.slow
def test_the_next_write_removes_the_leftovers_of_a_killed_writer(target):
    subprocess.run([sys.executable, "-c", DIE_WHILE_WRITING, target])
    assert target.read_bytes() == b"old"
    assert len(os.listdir(target.parent)) == 2
    with atomic_write(target) as file:
        file.write(b"new")
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.slow
def test_a_temporary_folder_is_deleted_after_its_block_or_after_a_kill_by_the_next_one(target):
    subprocess.run([sys.executable, "-c", DIE_IN_A_TEMPORARY_FOLDER, target])
    assert len(os.listdir(target.parent)) == 2
    with temporary_folder(target) as folder:
        assert (folder.parent, os.listdir(folder)) == (target.parent, [])
        assert len(os.listdir(target.parent)) == 2
        (folder / "half").write_text("half")
    assert os.listdir(target.parent) == [target.name]


def test_the_next_write_keeps_the_temporary_file_of_a_running_writer(target):
    with atomic_write(target) as slow:
        with atomic_write(target) as quick:
            quick.write(b"quick")
        assert target.read_bytes() == b"quick"
        slow.write(b"slow")
    assert target.read_bytes() == b"slow"


def test_readers_see_the_old_content_until_the_block_ends(target):
    with atomic_write(target, "w") as file:
        file.write("new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("raised", [ValueError("x"), RuntimeError("x"), KeyboardInterrupt(), UserError("x")], ids=repr)
def test_an_exception_in_the_block_is_raised_and_the_old_file_is_unchanged(target, raised):
    with pytest.raises(type(raised)) as caught, atomic_write(target) as file:
        _write_half_and_raise(file, raised)
    assert caught.value is raised
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == [target.name]


def _write_half_and_raise(file, raised):
    file.write(b"half")
    raise raised


def test_an_error_about_another_file_is_raised_as_it_is(target, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.txt"), atomic_write(target):
        (tmp_path / "other.txt").read_bytes()
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    "write",
    [lambda file: file.write(b"x" * 1_000_000), lambda file: torch.save({"w": torch.zeros(1_000_000)}, file)],
    ids=["write", "torch.save"],
)
def test_a_full_disk_is_one_sentence_and_the_old_file_is_unchanged(target, small_disk, write):
    small_disk()
    with (
        pytest.raises(UserError, match=f"could not write {target}: File too large; .* is unchanged"),
        atomic_write(target) as file,
    ):
        write(file)
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == [target.name]


def test_a_symbolic_link_is_kept(target, tmp_path):
    link = tmp_path / "last.pth"
    link.symlink_to(target.name)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_missing_folders_are_made(tmp_path):
    with atomic_write(tmp_path / "a" / "b" / "c.txt", "w") as file:
        file.write("ä\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_text("utf-8") == "ä\n"


@pytest.mark.parametrize("path", [".", "model.pth/x.pth", "model.pth/deep/x.pth"])
def test_an_impossible_path_is_one_sentence(target, path):
    with pytest.raises(UserError, match=r"write .*: "), atomic_write(target.parent / path):
        pass
    assert target.read_bytes() == b"old"


def test_appending_is_refused(target):
    with pytest.raises(ValueError, match="'a'"), atomic_write(target, "a"):
        pass


def test_sha256_is_the_hash_of_the_content(tmp_path):
    content = os.urandom(3 << 20)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_hashing_an_unreadable_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
        sha256(tmp_path / "absent")


def write(path):
    with atomic_write(path) as file:
        file.write(b"new")


def bind_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)


@pytest.mark.parametrize("use", [read_text, sha256, write])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, bind_socket])
def test_what_is_no_regular_file_is_neither_read_nor_replaced(make, use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make("state")
    before = os.lstat("state")
    os.symlink("state", "link")
    for path in ("state", "link"):
        with pytest.raises(UserError, match=r"(state|link).* is a (directory|pipe, a socket or a device)"):
            use(path)
    assert (os.lstat("state").st_ino, os.lstat("state").st_mode) == (before.st_ino, before.st_mode)


def test_a_text_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf\xc3\xa4\r\n")
    assert read_text(tmp_path / "a") == "ä\n"


# ---- leftovers: no process has the number 999999999 -----------------------------------------------------------------

LEFT = f"{socket.gethostname()}-999999999-0"


@pytest.mark.parametrize(
    "name", [f".a.{LEFT}.tmp", f".a.{LEFT}.making", f".\n.{LEFT}.old", os.fsdecode(b"." + b"\xff" * 9) + f".{LEFT}.tmp"]
)
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, bind_socket, lambda path: os.symlink("../outside", path)])
def test_leftovers_of_every_kind_are_removed_and_what_they_point_to_is_not(make, name, tmp_path, monkeypatch):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/theirs").touch()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    make(name)
    remove_all_leftovers(tmp_path / "run")
    assert os.listdir() == []
    assert (tmp_path / "outside/theirs").exists()


@pytest.mark.parametrize(
    "end", ["999999999-notes.txt", "999999999", "999999999-0.tmp.gz", f"{'9' * 30}-0.tmp", "٩٩٩٩٩٩٩٩٩-0.tmp", "-0.tmp"]
)
def test_what_only_resembles_a_leftover_is_kept(end, tmp_path):
    path = tmp_path / f".a.{socket.gethostname()}-{end}"
    path.touch()
    remove_all_leftovers(tmp_path)
    assert path.exists()


def test_a_leftover_of_a_process_with_the_same_number_is_not_used(target):
    """As in a container, where every run may be process 1."""
    name, _, number = temporary_path(target, "making").stem.rpartition("-")
    (target.parent / f"{name}-{int(number) + 1}.making").mkdir()
    with temporary_folder(target) as folder:
        assert os.listdir(folder) == []
