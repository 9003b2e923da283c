"""Starting the processes of a command, with ``--num-gpus`` or ``torchrun``: one rank each, in a process group."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ssql_det.core.errors import EXIT_INTERRUPTED, Terminated, UserError, raising_on_termination, reporting_errors
from ssql_det.core.heartbeat import TIMEOUT_VARIABLE, read_timeout, watching_ranks
from ssql_det.core.processes import make_child
from ssql_det.core.registry import import_inherited_plugins

_MAX_PROCESSES_PER_CORE = 4  # without a GPU; more are a mistake
_USER_ERROR_DELAY = 3.0  # seconds that ranks other than 0 wait: rank 0 mostly has the same error, and reports it
_BUG_DELAY = 0.5  # seconds more: a rank that lost its connection to a failed one fails too
_STOP_TIMEOUT = 5.0  # seconds that a rank has to end after SIGTERM


def launch(main_func: Callable[..., None], *args: Any, processes: int = 1) -> None:
    """Run ``main_func(*args)`` on every rank, inside a process group when there are several.

    Under ``torchrun`` this process is one rank and joins the group that the environment describes; else ``processes``
    are started on this machine. The backend is NCCL with a GPU and gloo without.

    >>> launch(print, "trained", processes=1)
    trained
    """
    world_size = _read_world_size()
    if world_size is not None:
        if world_size == 1:  # no group: in a group of one rank torch's SyncBatchNorm requires a GPU
            main_func(*args)
        else:
            _run_in_group(main_func, args)
        return
    if processes < 1:
        raise UserError(f"the number of processes must be 1 or more, got {processes}")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        available = torch.cuda.device_count()
        raise UserError(f"{processes} processes need a GPU each, but this machine has {available}; start fewer")
    limit = _MAX_PROCESSES_PER_CORE * (os.cpu_count() or 1)
    if not torch.cuda.is_available() and processes > limit:
        raise UserError(f"{processes} processes are too many for this machine without a GPU; start {limit} at most")
    if processes == 1:
        main_func(*args)
        return
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [
        make_child(
            _run_rank, main_func, args, environment={**environment, "RANK": str(index), "LOCAL_RANK": str(index)}
        )
        for index in range(processes)
    ]
    try:
        for each in ranks:
            each.start()
        _wait_until_ended(ranks)
    finally:
        _stop(ranks)


def _read_world_size() -> int | None:
    """The number of processes that ``torchrun``, or whatever started this one, has put into the environment.

    ``None`` if it has not. What the environment says of the group is checked, so that a rank cannot run alone.
    """
    if not os.environ.get("RANK") and not os.environ.get("WORLD_SIZE"):
        return None
    start = "start the processes with torchrun, or unset RANK and WORLD_SIZE to start a single one"

    def read(name: str) -> str:
        if value := os.environ.get(name):
            return value
        raise UserError(f"RANK or WORLD_SIZE is set in the environment, but {name} is not; {start}")

    def read_number(name: str) -> int:
        value = read(name)
        if value.isascii() and value.isdecimal():
            return int(value)
        raise UserError(f"the environment variable {name} must be a number, got {value!r}; {start}")

    rank, world_size = read_number("RANK"), read_number("WORLD_SIZE")
    if rank >= world_size:
        raise UserError(f"the environment has RANK {rank} and WORLD_SIZE {world_size}; ranks count from 0; {start}")
    if world_size > 1:
        read("MASTER_ADDR")
        read_number("MASTER_PORT")
    return world_size


def _wait_until_ended(ranks: Sequence[BaseProcess]) -> None:
    """Wait for all ranks; once some have failed, raise what their exit codes stand for."""
    running = dict(enumerate(ranks))
    while running:
        ready = wait([each.sentinel for each in running.values()])
        ended = [index for index, each in running.items() if each.sentinel in ready]
        codes = {index: running.pop(index).exitcode or 0 for index in ended}
        if (code := max(codes.values())) > 0:
            _raise_for_exit_code(code)
        for index, code in codes.items():
            if code:
                _raise_for_signal(index, signal.Signals(-code))


def _raise_for_exit_code(code: int) -> NoReturn:
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code - 128 in (signal.SIGTERM, signal.SIGHUP):
        raise Terminated(code - 128)
    raise SystemExit(code)  # that rank has reported why


def _raise_for_signal(index: int, number: signal.Signals) -> NoReturn:
    """For a rank that ended without a word."""
    if number == signal.SIGKILL:
        hint = "if the machine ran out of memory, use fewer processes or a smaller batch"
        raise UserError(f"rank {index} was killed (SIGKILL); {hint}")
    raise RuntimeError(f"rank {index} ended with {number.name}")


def _stop(processes: Sequence[BaseProcess]) -> None:
    """End the processes that still run, after an interrupt or SIGTERM."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGCONT)  # a stopped process receives SIGTERM only when it continues
    for process in started:
        process.join(_STOP_TIMEOUT)
        if process.is_alive():
            process.kill()


def _run_rank(main_func: Callable[..., None], args: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the command runs in the background
    with raising_on_termination(), reporting_errors():
        import_inherited_plugins()
        _run_in_group(main_func, args)


def _run_in_group(main_func: Callable[..., None], args: Any) -> None:
    _join_group()
    with watching_ranks():
        try:
            with reporting_errors():
                try:
                    main_func(*args)
                except UserError:
                    time.sleep(_USER_ERROR_DELAY if dist.get_rank() else 0)
                    raise
                except Exception:
                    time.sleep(_BUG_DELAY + (_USER_ERROR_DELAY if dist.get_rank() else 0))
                    raise
        except SystemExit as stop:
            if stop.code:
                # os._exit: destroying the group first makes the ranks that wait for this one fail and hide the error,
                # and a normal exit with the group still up can abort the interpreter and lose the exit code.
                if isinstance(stop.code, str):  # as the interpreter does
                    print(stop.code, file=sys.stderr)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(stop.code if isinstance(stop.code, int) else 1)
        with suppress(RuntimeError):  # another rank has failed and reported it
            dist.barrier()  # a rank that exits with a message in flight can abort the interpreter
    dist.destroy_process_group()


def _join_group() -> None:
    """Join the process group that the environment describes; that nobody answers in time is an error."""
    has_gpu, timeout = torch.cuda.is_available(), read_timeout()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except dist.DistError as failure:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR:MASTER_PORT)"
        raise UserError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not find the others at {address} in "
            f"{timeout:g} s ({TIMEOUT_VARIABLE}); check that address, and that all ranks run and reach it"
        ) from failure
    store.set_timeout(default_pg_timeout)
    backend = "nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, store=PrefixStore("ssql_det", store), rank=rank, world_size=world_size)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
