"""Child processes that start at once, end with their parent, and leave no temporary files.

On Linux the first child starts a server that imports the large libraries; every child is a fork of it, so that each has
them without the seconds and the memory of an import. Elsewhere each child is a new interpreter.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from ssql_det.core.files import is_running

if sys.platform == "linux":
    CONTEXT = multiprocessing.get_context("forkserver")
else:
    CONTEXT = multiprocessing.get_context("spawn")

# Only modules that do not depend on the environment: the server keeps the one in which the first child was started.
CONTEXT.set_forkserver_preload(["torch", "torchvision", "timm"])

_FOLDER_PREFIX = "ssql-"
_MAX_BASE = 48  # letters of the path that has the folder: that of a socket in it may have 107


def make_child(target: Callable[..., None], *arguments: Any, environment: Mapping[str, str]) -> BaseProcess:
    """A process, to be started, that calls the target in the environment; it is killed when this process ends."""
    environment = {**environment, "TMPDIR": _make_temporary_folder()}
    return CONTEXT.Process(target=_run_child, args=(environment, target, arguments))


def ignore_interrupts(worker_id: int) -> None:
    """The ``worker_init_fn`` of a DataLoader: Ctrl-C reaches workers too, but the main process stops them itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_child(environment: Mapping[str, str], target: Callable[..., None], arguments: Sequence[Any]) -> None:
    threading.Thread(target=_kill_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # the server may have looked its own up
    if sys.platform == "linux":
        # Workers of data loaders would have a server of their own, which does not end before them, nor they before it.
        multiprocessing.set_start_method("fork", force=True)
    target(*arguments)


def _kill_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _make_temporary_folder() -> str:
    """One folder for the temporary files, mostly sockets, of this process and its children; deleted when it ends.

    If this process is killed the next one deletes it. Where the path is too long for sockets there is none.
    """
    base = Path(tempfile.gettempdir())
    is_made = base.name.startswith(_FOLDER_PREFIX)  # by an earlier call, or by the parent
    if is_made or len(str(base)) > _MAX_BASE:
        return str(base)
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]  # host names may be long
    prefix = f"{_FOLDER_PREFIX}{host}-"
    for leftover in base.glob(f"{prefix}*-*"):
        pid = leftover.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)
    tempfile.tempdir = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-")
    # After multiprocessing's own files in it are deleted, at -100.
    Finalize(None, shutil.rmtree, args=(tempfile.tempdir, True), exitpriority=-101)
    return tempfile.tempdir
