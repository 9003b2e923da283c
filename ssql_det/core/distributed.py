"""Starting processes, with ``torchrun`` or ``--num-gpus``, and collectives over them.

Without a process group every function here behaves as with a single rank, so callers need no special case.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from ssql_det.core.errors import Terminated, UserError, reporting_errors
from ssql_det.core.processes import CONTEXT, set_up_child
from ssql_det.core.registry import import_inherited_plugins

T = TypeVar("T")

_MAX_PROCESSES_PER_CORE = 4  # without a GPU; more are a mistake
_USER_ERROR_DELAY = 3.0  # seconds that ranks other than 0 wait: rank 0 mostly has the same error, and reports it
_BUG_DELAY = 0.5  # seconds more: a rank that lost its connection to a failed one fails too
_STOP_TIMEOUT = 5.0  # seconds that a rank has to end after SIGTERM


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes the files and the log lines."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank has called this."""
    if _is_initialized():
        dist.barrier()


def all_gather(value: T) -> list[T]:
    """The list of every rank's value, on every rank. Values are pickled, so they should be small."""
    if not _is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_from_main(compute: Callable[[], T]) -> T:
    """Call ``compute`` on rank 0 and return its result on every rank. It is pickled, so it should be small.

    Used for decisions that depend on files, which the ranks might see at different times or not at all.

    >>> broadcast_from_main(lambda: 4 + 4)
    8
    """
    if not _is_initialized():
        return compute()
    results: list[Any] = [compute() if is_main() else None]
    dist.broadcast_object_list(results)
    result: T = results[0]
    return result


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over all ranks, on every rank, without gradients."""
    return all_reduce_tensor(values.detach(), "sum") / world_size()


def all_reduce_tensor(values: Tensor, by: Literal["max", "sum"]) -> Tensor:
    """The element-wise maximum or sum over all ranks, on every rank; ``values`` is not changed."""
    if not _is_initialized():
        return values
    reduced = values.clone()
    dist.all_reduce(reduced, dist.ReduceOp.MAX if by == "max" else dist.ReduceOp.SUM)
    return reduced


def concat_all_gather(values: Tensor) -> Tensor:
    """The tensors [N, ...] of all ranks, concatenated, without gradients; N is the same on every rank."""
    if not _is_initialized():
        return values.detach()
    local = values.detach().contiguous()
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(gathered, local)
    return torch.cat(gathered)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite every rank's tensors with those of rank 0."""
    if _is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def launch(main_func: Callable[..., None], *args: Any, processes: int = 1) -> None:
    """Run ``main_func(*args)`` on every rank, inside a process group when there are several.

    Under ``torchrun`` this process is one rank and joins the group that the environment describes; else ``processes``
    are started on this machine. The backend is NCCL with a GPU and gloo without.

    >>> launch(print, "trained", processes=1)
    trained
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if os.environ["WORLD_SIZE"] == "1":  # no group: in a group of one rank torch's SyncBatchNorm requires a GPU
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
    logging.getLogger(start_processes.__module__).setLevel(logging.ERROR)  # else it logs each process that it ends
    method = CONTEXT.get_start_method()
    ranks = start_processes(_run_rank, (environment, main_func, args), processes, join=False, start_method=method)
    try:
        while not ranks.join():
            pass
    except ProcessExitedException as failure:
        codes = [process.exitcode or 0 for process in ranks.processes]
        if max(codes) > 0:  # that rank has reported why
            raise SystemExit(max(codes)) from None
        if failure.signal_name == "SIGINT":
            raise KeyboardInterrupt from None
        if failure.signal_name in ("SIGTERM", "SIGHUP"):
            raise Terminated(signal.Signals[failure.signal_name]) from None
        if failure.signal_name == "SIGKILL":
            hint = "if the machine ran out of memory, use fewer processes or a smaller batch"
            raise UserError(f"rank {failure.error_index} was killed (SIGKILL); {hint}") from None
        raise
    finally:
        _stop(ranks.processes)


def ignore_interrupts(worker_id: int) -> None:
    """The ``worker_init_fn`` of a DataLoader: Ctrl-C reaches workers too, but the main process stops them itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """End the processes that still run, after an interrupt or SIGTERM."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_STOP_TIMEOUT)
        if process.is_alive():
            process.kill()


def _run_rank(index: int, environment: dict[str, str], main_func: Callable[..., None], args: Any) -> None:
    set_up_child(environment | {"RANK": str(index), "LOCAL_RANK": str(index)})
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the process that started it reports the interrupt
    with reporting_errors():
        import_inherited_plugins()
    _run_in_group(main_func, args)


def _run_in_group(main_func: Callable[..., None], args: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends this process even while it waits for the other ranks
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        with reporting_errors():
            try:
                main_func(*args)
            except UserError:
                time.sleep(_USER_ERROR_DELAY if rank() else 0)
                raise
            except Exception:
                time.sleep(_BUG_DELAY + (_USER_ERROR_DELAY if rank() else 0))
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


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
