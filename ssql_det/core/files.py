"""Files that are whole or absent: atomic writes, and the hash that names a file's content."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ssql_det.core.errors import UserError

_serial = itertools.count()


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success flush it to disk and rename it over ``path``.

    A kill, an exception or a full disk leaves the old file as it was. Readers see the old
    content or the new, never a part.

    >>> with atomic_write("notes.json", "w") as file:
    ...     json.dump(notes, file)
    """
    if "w" not in mode:
        raise ValueError(f"atomic_write replaces a whole file: mode must be 'w' or 'wb', got {mode!r}")
    target = Path(os.path.realpath(path))  # a symbolic link stays one; what it points to is replaced
    if target.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        temporary = temporary_path(target, "tmp")
        file = open(temporary, mode, encoding=None if "b" in mode else "utf-8")  # noqa: SIM115 (closed below)
    except OSError as failure:
        raise _cannot_write(path, failure) from failure
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_directory(target.parent)
    except (OSError, RuntimeError) as failure:
        failed_write = _failed_write(failure)
        if failed_write is None:  # the block's own trouble
            raise
        raise _cannot_write(path, failed_write) from failure
    finally:
        temporary.unlink(missing_ok=True)


def check_not_an_input(out: str | os.PathLike[str], read: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that is one of the files that are read: what is in it would be lost.

    >>> check_not_an_input(options.out, [options.config_file])
    """
    for path in read:
        if os.path.realpath(os.path.expanduser(path)) == os.path.realpath(out):
            raise UserError(f"{out} is a file that is read; writing there would lose it, so name another")


def check_disk_space(place: Path, megabytes: float) -> None:
    """Refuse what the disk has no room for, before hours of work on it."""
    existing = next(each for each in (place.resolve(), *place.resolve().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if megabytes * 1e6 > free:
        raise UserError(f"{place} needs {megabytes / 1000:,.1f} GB more and the disk has {free / 1e9:,.1f} GB free")


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure
    return digest.hexdigest()


def _cannot_write(path: str | os.PathLike[str], failure: OSError) -> UserError:
    reason = failure.strerror or failure
    return UserError(f"could not write {path}: {reason}; what was there before is untouched")


def _failed_write(failure: BaseException | None) -> OSError | None:
    """The failed write behind what the block raised, if one is: ``torch.save`` hides it in a RuntimeError."""
    while failure is not None and not isinstance(failure, OSError):
        failure = failure.__context__
    return failure if failure is not None and failure.filename is None else None  # a named file is another one


def temporary_path(target: Path, suffix: str) -> Path:
    """A hidden name beside ``target`` for work on it: this process's own, until it is renamed over ``target``."""
    return target.with_name(f"{_stem(target)}{os.getpid()}-{next(_serial)}.{suffix}")


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` to make it in; it is gone afterwards, or if killed, with the next one.

    >>> with temporary_folder(Path("toy")) as making:
    ...     (making / "notes.txt").write_text("whole")
    ...     making.rename("toy")
    """
    remove_leftovers(target)
    folder = temporary_path(target, "making")
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Delete the work on ``target``, files and folders, whose process on this host was killed: it adds up."""
    stem = _stem(target)
    for leftover in target.parent.glob(f"{glob.escape(stem)}*"):
        worker = leftover.name.removeprefix(stem).split("-")[0]
        if not worker.isdecimal() or _is_running(int(worker)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _stem(target: Path) -> str:
    return f".{target.name}.{socket.gethostname()}-"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as somebody else
        return True
    return True


def _flush_directory(directory: Path) -> None:
    """A rename survives a power cut only once the directory itself is on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
