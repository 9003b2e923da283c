"""One step of ``ssql-det reproduce``: ``ssql-det`` in a process that ends when its parent does.

Run as ``python -m ssql_det.cli.child ARGUMENTS`` with a pipe as standard input. Nothing is written to the pipe; it
closes when the parent ends, in whatever way, and this process then kills itself. So a step that is started again never
has two processes that write to its folder.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading


def _kill_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _exit_at_once() -> None:
    """Freeing torch takes Python seconds, in which no thread runs that would notice the parent's end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    threading.Thread(target=_kill_with_parent, daemon=True).start()
    status = 1  # what an uncaught exception exits with
    atexit.register(_exit_at_once)  # registered first, so called last

    from ssql_det.cli.main import main

    try:
        main(sys.argv[1:])
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
