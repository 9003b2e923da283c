"""``OPTIM.RANKS``: the number of ranks of a recipe, of which one process may take several, one after the other.

A rank's part of a batch has its own norm statistics, its own ranges under SSQL, and gradients are averaged over ranks,
as between processes. So a recipe for several GPUs gives the same weights, up to rounding, on one; and as each part ends
with its backward pass, it needs the memory of one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.core.errors import UserError
from ssql_det.pretrain.config import PretrainConfig
from ssql_det.ssl import SSQL, Method
from ssql_det.ssl.method import Views


def count_ranks_per_process(config: PretrainConfig, network: SSQL | Method, num_processes: int) -> int:
    """How many ranks each process takes; an error if the ranks of the config must know each other's part."""
    ranks = config.optim.ranks or num_processes
    if ranks % num_processes:
        raise UserError(f"OPTIM.RANKS {ranks} cannot be split over {num_processes} processes; use a divisor of it")
    if ranks == num_processes:
        return 1
    method = network.method if isinstance(network, SSQL) else network
    reasons = {
        "SYNC_NORM True: norms are of all ranks": config.sync_norm,
        f"{method.title}: {method.shared_by_ranks}": bool(method.shared_by_ranks),
        "SSQL.PER_RANK False: activation ranges are of all ranks": isinstance(network, SSQL) and not network.per_rank,
    }
    if shared := [reason for reason, applies in reasons.items() if applies]:
        raise UserError(
            f"{num_processes} process(es) cannot act as OPTIM.RANKS {ranks} with {shared[0]}; change that, or use "
            f"{ranks} processes, or OPTIM.RANKS 0"
        )
    return ranks // num_processes


def backward_by_rank(
    model: nn.Module, views: Views, count: int, loss_parts: Sequence[Callable[[Views], Tensor]]
) -> Tensor:
    """Run the forward and the backward pass of each part of the loss, for each of ``count`` ranks; return the loss: the
    sum of its parts, as a mean over the ranks.

    What a step changes without gradients, such as norm statistics and moving averages, ends as the first rank leaves
    it, as between processes: its part is the last.
    """
    state = [*_list_untrained_state(model)] if count > 1 else []
    before = [tensor.clone() for tensor in state]
    losses: list[Tensor] = []
    for index in reversed(range(count)):
        if losses:
            _restore(state, before)
        for compute_loss in loss_parts:
            is_last = index == 0 and compute_loss is loss_parts[-1]
            waits = not is_last and isinstance(model, DistributedDataParallel)
            with model.no_sync() if waits else nullcontext():  # type: ignore[operator]  # gradients are averaged once
                loss = compute_loss([view.chunk(count)[index] for view in views]) / count
                loss.backward()
            losses.append(loss.detach())
    return torch.stack(losses).sum()


@torch.no_grad()
def _restore(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)


def _list_untrained_state(model: nn.Module) -> Iterator[Tensor]:
    yield from model.buffers()
    yield from (parameter for parameter in model.parameters() if not parameter.requires_grad)
