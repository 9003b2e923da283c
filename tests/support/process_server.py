"""Commands in processes of their own, which may be killed: forks of one that has imported everything already.

Reads a line of JSON a command: ``arguments``, ``log`` for its output (without the errors, where these have a file of
their own: ``errors``), the ``folder`` it runs in, how many ``processes`` run it (with the environment that torchrun
gives them), and when all of them are killed: after so many ``seconds``, when a ``file`` has so many ``lines``, or when
a new file of a ``pattern`` has grown to a ``size``, and a ``delay`` later. They may get another ``signal`` than
SIGKILL, once, or in their place the process whose number is the last line of the ``file``, or one ``to_a_rank`` that
the command has started. The command may run ``in_background``. Instead of ssql-det all may run a function: ``work``.
Answers with the exit status (-9 after a kill), the seconds it ran, and CPU seconds.
"""

import glob
import json
import os
import pkgutil
import signal
import socket
import sys
import time
import traceback

import ssql_det.detect.sweep
import ssql_det.detect.train
import ssql_det.pretrain.loop  # noqa: F401 (imported once, for all forks)
from ssql_det.cli.main import main
from ssql_det.core.launch import launch
from support.kills import list_children


def is_due(command, start, before):
    """Whether it is time to kill; files of the pattern that were there ``before`` do not count."""
    try:
        if "seconds" in command:
            return time.monotonic() - start >= command["seconds"]
        if "pattern" in command:
            new = set(glob.glob(command["pattern"])) - before
            return any(os.path.getsize(path) >= command["size"] for path in new)
        with open(command["file"], "rb") as file:
            return file.read().count(b"\n") >= command["lines"]
    except (KeyError, OSError):
        return False


def places(processes):
    """The environment of each process of a job; a single one is no job."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1], "WORLD_SIZE": processes}
    return [job | {"LOCAL_WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]


def fork(command, place):
    child = os.fork()
    if child:
        return child
    os.environ.update({name: str(value) for name, value in place.items()})
    for stream, path in ((1, command["log"]), (2, command.get("errors", command["log"]))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    # a shell starts a background job with SIGINT ignored, and its children inherit that
    signal.signal(signal.SIGINT, signal.SIG_IGN if "in_background" in command else signal.default_int_handler)
    status = 1
    try:
        os.chdir(command.get("folder", "."))
        if "work" in command:
            launch(pkgutil.resolve_name(command["work"]), *command["arguments"])
        else:
            main(command["arguments"])
        status = 0
    except SystemExit as stop:
        status = stop.code
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def send(number, processes):
    for process in processes:
        os.kill(process, number)


def choose_targets(command, running):
    if "to_the_last" in command:
        with open(command["file"]) as pids:
            return [int(pids.read().split()[-1])]
    if "to_a_rank" in command:  # ranks are children of the server of forks that the command has started
        return [pid for each in running for server in list_children(each) for pid in list_children(server)][:1]
    return running


def run(command):
    start, before = time.monotonic(), set(glob.glob(command.get("pattern", "")))
    running = {fork(command, place) for place in places(command.get("processes", 1))}
    failed, has_signalled, cpu_seconds = 0, False, 0.0  # failed: the first status that is not 0
    while running:
        for child in set(running):
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                running.remove(child)
                cpu_seconds += usage.ru_utime + usage.ru_stime
                failed = failed or os.waitstatus_to_exitcode(status)
        if failed:  # torchrun too ends all with one
            send(signal.SIGKILL, running)
        elif not has_signalled and is_due(command, start, before):
            has_signalled = True
            time.sleep(command.get("delay", 0.0))
            send(command.get("signal", signal.SIGKILL), choose_targets(command, running))
        time.sleep(0.0005 if "pattern" in command else 0.002)
    return {"status": failed, "seconds": time.monotonic() - start, "cpu_seconds": cpu_seconds}


if __name__ == "__main__":  # a command that starts processes imports this file in each
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
