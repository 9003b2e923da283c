"""Ranks and collectives of small objects; without a process group they behave as with a single rank."""

from __future__ import annotations

import atexit
import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None


def get_world_size() -> int:
    return dist.get_world_size() if _is_grouped() else 1


def get_rank() -> int:
    return dist.get_rank() if _is_grouped() else 0


def is_main_process() -> bool:
    return get_rank() == 0


@functools.cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create a group of the ranks of each machine; every process calls it once, after ``init_process_group``.

    ``launch`` calls it. Under torchrun: ``create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))``.
    """
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None, "There is a local process group already"
    size = get_world_size()
    assert size % num_workers_per_machine == 0, f"{size} processes on machines of {num_workers_per_machine}"
    for first in range(0, size, num_workers_per_machine):  # every rank must take part in creating every group
        ranks = range(first, first + num_workers_per_machine)
        group: Any = dist.new_group(list(ranks))
        if get_rank() in ranks:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> dist.ProcessGroup:
    assert _LOCAL_PROCESS_GROUP is not None, (
        "there is no local process group: start the processes with launch(), or call "
        "comm.create_local_process_group(processes on each machine) after init_process_group()"
    )
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """The rank among the processes on this machine."""
    return dist.get_rank(get_local_process_group()) if _is_grouped() else 0


def get_local_size() -> int:
    """The number of processes on this machine."""
    return dist.get_world_size(get_local_process_group()) if _is_grouped() else 1


def synchronize() -> None:
    """Wait for all processes."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # otherwise it guesses the device, with a warning
    else:
        dist.barrier()


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The list of every rank's ``data``, which is pickled, on every rank."""
    group = _group_of_several(group)
    if group is None:
        return [data]
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The list of every rank's ``data`` on rank ``dst``; on the others an empty list."""
    group = _group_of_several(group)
    if group is None:
        return [data]
    gathered: list[Any] | None = [None] * dist.get_world_size(group) if dist.get_rank(group) == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A random number from rank 0's NumPy generator, on every rank; every rank must call it."""
    seed: int = all_gather(np.random.randint(2**31))[0]
    return seed


def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """The mean (or sum) of each scalar over the ranks, on rank 0; the result on other ranks is undefined."""
    size = get_world_size()
    if size < 2:
        return input_dict
    names = sorted(input_dict)  # the same order on every rank
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and is_main_process():
            values /= size
    return dict(zip(names, values, strict=True))


def _group_of_several(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group, by default that of all ranks; None if this rank is its only member."""
    if get_world_size() == 1:
        return None
    group = _get_global_gloo_group() if group is None else group
    return group if dist.get_world_size(group) > 1 else None


@functools.cache
def _get_global_gloo_group() -> Any:
    """A gloo group of all ranks, so that objects do not go through GPU memory."""
    if dist.get_backend() == dist.Backend.NCCL:
        return dist.new_group(backend="gloo")
    return dist.group.WORLD


@atexit.register
def _forget_groups() -> None:
    """Clear the cached groups: an interpreter can abort if it exits while something refers to a group."""
    global _LOCAL_PROCESS_GROUP
    _LOCAL_PROCESS_GROUP = None
    _get_global_gloo_group.cache_clear()


def _is_grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
