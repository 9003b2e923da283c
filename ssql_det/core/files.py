"""Atomic writes, temporary folders, reading of regular files, and checks before writing."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ssql_det.core.errors import UserError

_counter = itertools.count()  # distinguishes the temporary files of this process
_TEMPORARY_END = re.compile(r"([0-9]{1,9})-[0-9]+\.(?:tmp|making|old)")  # of a name, after the host: process, counter


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success flush it to disk and rename it to ``path``.

    After a kill, an exception or a full disk the old file is unchanged. Readers see the old content or the new,
    never a part of it.

    >>> with atomic_write("notes.txt", "w") as file:
    ...     _ = file.write("complete")
    """
    if "w" not in mode:
        raise ValueError(f"atomic_write replaces a whole file: mode must be 'w' or 'wb', got {mode!r}")
    encoding = None if "b" in mode else "utf-8"
    target = Path(os.path.realpath(path))  # keeps a symbolic link: the file that it points to is replaced
    if target.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file in it")
    check_regular_file(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        temporary = temporary_path(target, "tmp")
        file = open(temporary, mode, encoding=encoding, errors=encoding and "backslashreplace")  # noqa: SIM115 (below)
    except OSError as failure:
        raise _write_error(path, failure) from failure
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_directory(target.parent)
    except (OSError, RuntimeError) as failure:
        failed_write = _find_failed_write(failure)
        if failed_write is None:  # an error of the caller's block that is not about this file
            raise
        raise _write_error(path, failed_write) from failure
    finally:
        temporary.unlink(missing_ok=True)


def check_not_an_input(out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output file that is also an input: writing it would destroy the input.

    >>> check_not_an_input("b.pth", ["a.pth"])
    """
    for path in inputs:
        if os.path.realpath(os.path.expanduser(path)) == os.path.realpath(out):
            raise UserError(f"{out} is also an input, which would be overwritten; name another output file")


def check_regular_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is there but is no regular file: a pipe or a device may have no end, and is not ours to replace.

    >>> check_regular_file("missing.json")  # whoever opens it says that it is missing
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{path} is {kind}, not a file; move it away, or name another file")


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """The text of a regular file in UTF-8, with or without a byte-order mark; ``errors`` is that of ``open``.

    >>> with atomic_write("notes.txt", "w") as file:
    ...     _ = file.write("complete")
    >>> read_text("notes.txt")
    'complete'
    """
    check_regular_file(path)
    try:
        return Path(path).read_text("utf-8-sig", errors)
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure


def check_disk_space(path: Path, megabytes: float) -> None:
    """Refuse an output of this size (in 10^6 bytes) that does not fit on the disk of ``path``, before it is made."""
    existing = next(each for each in (path.resolve(), *path.resolve().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if megabytes * 1e6 > free:
        raise UserError(
            f"{path} needs {megabytes / 1000:,.1f} GB, but its disk has {free / 1e9:,.1f} GB free; name another disk"
        )


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    check_regular_file(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure
    return digest.hexdigest()


def _write_error(path: str | os.PathLike[str], failure: OSError) -> UserError:
    reason = failure.strerror or failure
    return UserError(f"could not write {path}: {reason}; the old content, if any, is unchanged")


def _find_failed_write(failure: BaseException | None) -> OSError | None:
    """The failed write that caused an exception, if one did: ``torch.save`` hides it in a RuntimeError.

    An error of a write to the open file has no file name; one that has is about another file.
    """
    while failure is not None and not isinstance(failure, OSError):
        failure = failure.__context__
    return failure if failure is not None and failure.filename is None else None


def temporary_path(target: Path, suffix: str) -> Path:
    """A hidden path beside ``target``, unique to this process and call, to be renamed to ``target`` when complete."""
    while True:
        path = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}-{next(_counter)}.{suffix}")
        if not os.path.lexists(path):  # else left by a killed process that had the same number
            return path


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, to be renamed to it when complete; else it is deleted at the end of the block.

    After a kill it remains, and the next call for the same target deletes it.

    >>> from pathlib import Path
    >>> with temporary_folder(Path("toy")) as folder:
    ...     _ = (folder / "notes.txt").write_text("complete")
    ...     _ = folder.rename("toy")
    """
    remove_leftovers(target)
    folder = temporary_path(target, "making")
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Delete the temporary files and folders for ``target`` that killed processes of this host left."""
    _remove_leftovers(target.parent, glob.escape(target.name))


def remove_all_leftovers(folder: Path) -> None:
    """Delete what killed processes of this host left in the folder, whatever it was to become."""
    _remove_leftovers(folder, "*")


def _remove_leftovers(folder: Path, name_pattern: str) -> None:
    host = f".{socket.gethostname()}-"
    for leftover in folder.glob(f".{name_pattern}{glob.escape(host)}*"):
        name_end = _TEMPORARY_END.fullmatch(leftover.name.rpartition(host)[2])
        if name_end is None or is_running(int(name_end[1])):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):  # it does no harm where it is
                leftover.unlink()


def is_running(pid: int) -> bool:
    """Whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, under another user
        return True
    return True


def _flush_directory(directory: Path) -> None:
    """A rename survives a power cut only once the directory itself is on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
