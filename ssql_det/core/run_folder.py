"""A run owns its folder: no other run writes there at the same time, nor later but to resume it.

The owner holds a lock on a hidden file, in which it says who it is. The system releases the lock however the process
ends, and the processes that it starts do not inherit it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shlex
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ssql_det.core.config import SAVED_CONFIG_NAME, RenamedKeys, check_same_config, read_saved_config
from ssql_det.core.distributed import broadcast_from_main
from ssql_det.core.errors import UserError
from ssql_det.core.files import remove_all_leftovers

LOCK_NAME = ".lock"
_MAX_LISTED = 5  # files in a message
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # what file systems without locks answer
_logger = logging.getLogger(__name__)


@contextmanager
def owning_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Own the folder, which is made if it is missing; a UserError says which process owns it already.

    In a process group every rank enters, and rank 0 holds the lock. A folder that was made for nothing is removed.

    >>> with owning_folder("runs/ssql"):
    ...     pass  # train
    """
    path, held, made = Path(folder), list[IO[bytes]](), list[Path]()

    def acquire() -> None:
        try:
            made.extend(each for each in (path, *path.parents) if not each.exists())
            path.mkdir(parents=True, exist_ok=True)
            held.append(_acquire(path))
            remove_all_leftovers(path)
        except OSError as failure:
            raise UserError(f"cannot write to {folder}: {failure.strerror}; choose another folder") from failure

    broadcast_from_main(acquire)
    try:
        yield
    finally:
        for file in held:
            (path / LOCK_NAME).unlink(missing_ok=True)
            file.close()
        with suppress(OSError):  # it has files
            for each in made:
                each.rmdir()


def _acquire(folder: Path) -> IO[bytes]:
    path = folder / LOCK_NAME
    while True:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # what a link points to would be emptied
            raise UserError(f"{path} is a link, a folder or a pipe, and no lock of a run; remove it")
        file = open(path, "a+b")  # noqa: SIM115 (closing it releases the lock)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            with file:
                if failure.errno in _NO_LOCKS:
                    _logger.warning("the file system of %s has no locks: start one run there at a time", folder)
                elif failure.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    owner = file.read().decode(errors="replace") or "another process"
                    raise UserError(f"{folder} is in use by {owner}; wait for it, or choose another folder") from None
                else:
                    raise
            return open(os.devnull, "rb")  # nothing is held
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its owner has deleted it in the meantime
    file.truncate(0)
    owner = f"process {os.getpid()} on {socket.gethostname()}: {shlex.join(sys.argv)}"
    file.write(owner.encode(errors="backslashreplace"))
    file.flush()
    return file


def check_resume(
    values: Mapping[str, Any],
    folder: Path,
    checkpoint_name: str,
    other_names: Collection[str],
    resume: bool,
    ignored_keys: Collection[str],
    defaults: Mapping[str, Any],
    renamed_keys: RenamedKeys,
) -> bool:
    """Whether the folder has a run to resume. It needs ``resume`` and, but for ``ignored_keys``, the same config as
    ``values``; otherwise it is an error. A key that did not exist when it started counts with its default.

    ``checkpoint_name`` is a file of every run that can be resumed; ``other_names`` are patterns of the other files that
    a run writes, of which a new run must overwrite none. A run that ended before its first checkpoint has a config and
    curves; it starts again.
    """
    patterns = (checkpoint_name, SAVED_CONFIG_NAME, *other_names)
    found = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
    if not found:
        return False
    if not resume:
        raise UserError(
            f"{folder} already holds a run; add --resume to continue it, or choose another OUTPUT_DIR "
            f"(it has {', '.join(found[:_MAX_LISTED])})"
        )
    if not (folder / SAVED_CONFIG_NAME).exists():
        missing = f"{folder} has {found[0]} but no {SAVED_CONFIG_NAME}"
        raise UserError(f"{missing}: it is no run that can be resumed; choose another OUTPUT_DIR")
    before, now = (
        {key: value for key, value in config.items() if key not in ignored_keys}
        for config in (read_saved_config(folder, renamed_keys), values)
    )
    before |= {key: value for key, value in defaults.items() if key in now and key not in before}
    check_same_config(before, now, f"the run in {folder}", "resume with its config, or choose another OUTPUT_DIR")
    return (folder / checkpoint_name).exists()
