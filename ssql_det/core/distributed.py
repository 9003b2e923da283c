"""One process or many. ``torchrun ...`` and ``--num-gpus N`` end in the same place: :func:`launch`.

Outside a process group every function here answers for a single process, so callers need no branches.
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
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from ssql_det.core.errors import Terminated, UserError, reporting_errors
from ssql_det.core.registry import import_inherited_plugins

T = TypeVar("T")

_MOST_A_CORE = 4  # processes: more of them than that are a mistake
_FIRST_SPEAKS = 1.0  # seconds that the other ranks leave it to say what all have found
_BUG_DELAY = 0.5  # seconds more, as a rank that has lost another one to a mistake fails too
_STOP_SECONDS = 5.0  # that a rank has to end after SIGTERM


def rank() -> int:
    """This process's number in its job, from 0."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if _grouped() else 1


def is_main() -> bool:
    """Whether this process writes the files and the log lines."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if _grouped():
        dist.barrier()


def all_gather(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks, on every rank (pickled: for small objects)."""
    if not _grouped():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_from_main(find: Callable[[], T]) -> T:
    """What ``find`` gives the main process, on every rank (pickled: for small objects).

    So all decide alike, also where only the first sees the folder, or sees it earlier.

    >>> done = broadcast_from_main(lambda: rows.read_rows(path) if path.exists() else [])
    """
    if not _grouped():
        return find()
    found: list[Any] = [find() if is_main() else None]
    dist.broadcast_object_list(found)
    result: T = found[0]
    return result


def all_reduce_mean(values: Tensor) -> Tensor:
    """Over the ranks, on every rank, without gradients."""
    return all_reduce_tensor(values.detach(), "sum") / world_size()


def all_reduce_tensor(values: Tensor, by: Literal["max", "sum"]) -> Tensor:
    """The largest of each over the ranks, or their sum, on every rank, in one collective.

    >>> all_reduce_tensor(counts, "sum")
    """
    if not _grouped():
        return values
    reduced = values.clone()
    dist.all_reduce(reduced, dist.ReduceOp.MAX if by == "max" else dist.ReduceOp.SUM)
    return reduced


def concat_all_gather(values: Tensor) -> Tensor:
    """Those of all ranks [N, ...] one after the other, without gradients; each has as many."""
    if not _grouped():
        return values.detach()
    own = values.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Make every rank's tensors the main process's, in place."""
    if _grouped():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def launch(work: Callable[..., None], *args: Any, processes: int = 1) -> None:
    """Run ``work(*args)`` in every process of the job, inside a process group when there are several.

    Started by ``torchrun``, this process joins the group that the environment names; else ``processes``
    are started on this machine. NCCL where CUDA is, gloo on the CPU.

    >>> launch(train, config, processes=args.num_gpus)
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if os.environ["WORLD_SIZE"] == "1":  # without a group: in one of a single rank torch's SyncBN wants a GPU
            work(*args)
        else:
            _in_group(work, args)
        return
    if processes < 1:
        raise UserError(f"the number of processes must be 1 or more, got {processes}")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"{processes} processes want a GPU each, this machine has {torch.cuda.device_count()}")
    most = _MOST_A_CORE * (os.cpu_count() or 1)
    if not torch.cuda.is_available() and processes > most:
        raise UserError(f"{processes} processes are too many for this machine without a GPU; ask for {most} at most")
    if processes == 1:
        work(*args)
        return
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    logging.getLogger(spawn.__module__).setLevel(logging.ERROR)  # else it logs each process that it ends
    ranks = spawn(_as_rank, (processes, address, work, args), nprocs=processes, join=False)
    try:
        while not ranks.join():
            pass
    except ProcessExitedException as failure:
        codes = [process.exitcode or 0 for process in ranks.processes]
        if max(codes) > 0:  # that rank has reported why
            raise SystemExit(max(codes)) from None
        if failure.signal_name == "SIGINT":
            raise KeyboardInterrupt from None
        if failure.signal_name == "SIGTERM":
            raise Terminated from None
        if failure.signal_name == "SIGKILL":
            hint = "if the machine ran out of memory, use fewer processes or a smaller batch"
            raise UserError(f"rank {failure.error_index} was killed (SIGKILL); {hint}") from None
        raise
    finally:
        _stop(ranks.processes)


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; a loader's workers are stopped by the one that answers it.

    >>> DataLoader(images, num_workers=4, worker_init_fn=ignore_interrupts)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """End those that still run, when this process was interrupted or terminated."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_STOP_SECONDS)
        if process.is_alive():
            process.kill()


def _as_rank(index: int, processes: int, address: dict[str, str], work: Callable[..., None], args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the process that started it reports the interrupt
    environment = {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(processes)}
    os.environ.update(address | environment | {"LOCAL_WORLD_SIZE": str(processes)})
    with reporting_errors():
        import_inherited_plugins()
    _in_group(work, args)


def _in_group(work: Callable[..., None], args: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, also while it waits for the other ranks
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        with reporting_errors():
            try:
                work(*args)
            except UserError:  # most often all ranks have found the same mistake, and one sentence is enough
                time.sleep(_FIRST_SPEAKS if rank() else 0)
                raise
            except Exception:
                time.sleep(_BUG_DELAY + (_FIRST_SPEAKS if rank() else 0))
                raise
    except SystemExit as stop:
        if stop.code:
            # At once: to take the group down makes the ranks that wait for this one fail first and hide the mistake;
            # to end with the group up can abort the interpreter and lose the exit code.
            if isinstance(stop.code, str):  # as the interpreter would
                print(stop.code, file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code if isinstance(stop.code, int) else 1)
    with suppress(RuntimeError):  # another rank made a mistake, and has said so
        dist.barrier()  # a rank that leaves while its last message is on the way can abort the interpreter
    dist.destroy_process_group()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
