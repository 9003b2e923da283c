"""Child processes that start at once and end with their parent.

On Linux the first child starts a server that imports the large libraries; every child is a fork of it, so that each has
them without the seconds and the memory of an import. Elsewhere each child is a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait

if sys.platform == "linux":
    CONTEXT = multiprocessing.get_context("forkserver")
else:
    CONTEXT = multiprocessing.get_context("spawn")

# Only modules that do not depend on the environment: the server keeps the one in which the first child was started.
CONTEXT.set_forkserver_preload(["torch", "torchvision", "timm"])


def set_up_child(environment: Mapping[str, str]) -> None:
    """To be called first in a child: kill it when its parent ends, in whatever way, and set its environment."""
    threading.Thread(target=_kill_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)


def _kill_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def ignore_interrupts(worker_id: int) -> None:
    """The ``worker_init_fn`` of a DataLoader: Ctrl-C reaches workers too, but the main process stops them itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
