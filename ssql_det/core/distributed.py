"""Collectives over the ranks of a process group, which :mod:`ssql_det.core.launch` starts.

Without a process group every function here behaves as with a single rank, so callers need no special case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _is_initialized() else 1


def local_world_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if _is_initialized() else 1


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

    Used for decisions that depend on files, which the ranks might see at different times or not at all. An exception is
    raised on rank 0 alone, and ends the run; until then the others wait.

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


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over the ranks, in one collective: for parameters that are in no DistributedDataParallel.

    Where only some ranks have a gradient, it counts as 0 on the others; where none has, it stays ``None``.
    """
    own = list(parameters)
    if not own or not _is_initialized():
        return
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in own]
    flat = torch.cat([*map(torch.flatten, gradients), gradients[0].new_tensor([each.grad is not None for each in own])])
    means = all_reduce_mean(flat).split([*map(torch.numel, own), len(own)])
    for parameter, mean, share in zip(own, means, means[-1].tolist(), strict=False):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype) if share else None


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite every rank's tensors with those of rank 0."""
    if _is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
