"""Commands in processes of their own, which may be killed: forks of one that has imported everything already.

Reads a line of JSON a command: ``arguments``, ``log`` for its output, and when it is killed: after so many ``seconds``,
or when a ``file`` has so many ``lines``. Answers with the exit status (-9 after a kill) and the seconds it ran.
"""

import json
import os
import signal
import sys
import time

import torch

import ssql_det.detect.sweep
import ssql_det.detect.train
import ssql_det.pretrain.loop  # noqa: F401 (imported once, for all forks)
from ssql_det.cli.main import main


def is_due(command, start):
    if "seconds" in command:
        return time.monotonic() - start >= command["seconds"]
    try:
        with open(command["file"], "rb") as file:
            return file.read().count(b"\n") >= command["lines"]
    except (KeyError, OSError):
        return False


def run(command):
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            main(command["arguments"])
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}
        if is_due(command, start):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


torch.set_num_threads(1)
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
