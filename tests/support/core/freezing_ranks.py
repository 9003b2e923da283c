"""Two ranks, one of which freezes."""

import os
import signal
import time

from ssql_det.core.distributed import barrier, rank
from ssql_det.core.errors import reporting_errors
from ssql_det.core.launch import launch
from ssql_det.core.processes import CONTEXT


def freeze(frozen):
    """One rank stops without closing a connection, as when its machine is down; the other waits for it."""
    time.sleep(0.3)
    if rank() == frozen:
        os.kill(os.getpid(), signal.SIGSTOP)
    barrier()


def start(frozen):
    CONTEXT.set_forkserver_preload(["torch"])
    os.environ["SSQL_DET_TIMEOUT"] = "4"
    with reporting_errors():
        launch(freeze, frozen, processes=2)
