"""Reads checkpoints with limited memory; for a process of its own."""

import json
import resource
import time

from ssql_det.convert import read_checkpoint
from ssql_det.core.errors import UserError


def size(of):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(of)) * 1024


def read_with_little_memory(*paths):
    """Prints a line of JSON for each: the outcome, the sentence of an error, seconds, and bytes of memory taken."""
    limit = size("VmSize") + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in paths:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before, start = size("VmRSS"), time.process_time()
        try:
            read_checkpoint(path)
            outcome = ["read", ""]
        except UserError as error:
            outcome = ["refused", str(error)]
        except BaseException as failure:
            outcome = ["crashed", repr(failure)]
        print(json.dumps([*outcome, time.process_time() - start, size("VmHWM") - before]), flush=True)
