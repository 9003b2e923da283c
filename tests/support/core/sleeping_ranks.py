"""Two ranks that do nothing but say that they are there, each with a child process."""

import os
import signal
import time

from ssql_det.core.distributed import barrier, rank
from ssql_det.core.errors import raising_on_termination, reporting_errors
from ssql_det.core.launch import launch
from ssql_det.core.processes import CONTEXT


def sleep(file):
    if not os.fork():  # as a worker of a data loader: it looks for its parent now and then
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(0)
    with open(file, "a") as pids:
        pids.write(f"{os.getpid()}\n")
    time.sleep(60)


def freeze(frozen):
    """One rank stops without closing a connection, as when its machine is down; the other waits for it."""
    time.sleep(0.3)
    if rank() == frozen:
        os.kill(os.getpid(), signal.SIGSTOP)
    barrier()


def start_freezing(frozen):
    CONTEXT.set_forkserver_preload(["torch"])
    os.environ["SSQL_DET_TIMEOUT"] = "2"
    with reporting_errors():
        launch(freeze, frozen, processes=2)


def start(file, is_in_background):
    # a shell starts a background job with SIGINT ignored, and its children inherit that
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_in_background else signal.default_int_handler)
    CONTEXT.set_forkserver_preload(["torch"])
    with raising_on_termination(), reporting_errors():  # as every command
        launch(sleep, file, processes=2)
