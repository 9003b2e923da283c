"""Running a function in several processes, on one or more machines."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from ..utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable[..., object],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in ``num_gpus_per_machine`` new processes, or in this one if it is the only one.

    Every machine calls it with its rank and the ``dist_url`` of the first machine, such as "tcp://10.0.0.1:8686"; on a
    single machine "auto" finds a free port. The backend is NCCL with GPUs and gloo without.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url 'auto' is for one machine: several need the address of the first"
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url is not None and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning("A file:// dist_url is unreliable on several machines: prefer tcp://")
    group = {"init_method": dist_url, "world_size": world_size, "timeout": timeout}
    first_rank = machine_rank * num_gpus_per_machine
    start_processes(
        _run_as_rank, args=(first_rank, num_gpus_per_machine, group, main_func, args), nprocs=num_gpus_per_machine
    )


def _run_as_rank(
    local_rank: int,
    first_rank: int,
    num_workers: int,
    group: dict[str, Any],
    main_func: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        count = torch.cuda.device_count()
        assert num_workers <= count, f"{num_workers} processes need a GPU each, but this machine has {count}"
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=first_rank + local_rank, **group)
    except Exception:
        logging.getLogger(__name__).error(f"Cannot join the process group at {group['init_method']}")
        raise
    comm.create_local_process_group(num_workers)
    if on_gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()  # wait for slow processes here, not in the first collective of main_func
    main_func(*args)
    if dist.is_initialized():
        dist.destroy_process_group()  # an interpreter that exits with the group still up can abort


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
