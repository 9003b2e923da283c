"""The process of one step: ``ssql-det`` that does not outlive whoever started it.

``python -m ssql_det.cli.child ARGUMENTS`` with a pipe as its standard input. Nobody writes into the pipe; it
closes when its other end is gone, however that process ended, and this one ends itself at once: so no step is written
to by two processes when the command is started again.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading


def _end_with_the_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _end_at_once() -> None:
    """Python takes seconds to take torch apart, without the thread: it would not see the parent's end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    status = 1  # a bug's
    atexit.register(_end_at_once)  # the first, so that it comes after all others

    from ssql_det.cli.main import main

    try:
        main(sys.argv[1:])
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
