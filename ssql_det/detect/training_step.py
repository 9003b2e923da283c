"""A step of a detector's training before the optimizer's: the gradients of the mean loss of some passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.core.distributed import all_reduce_mean
from ssql_det.core.errors import UserError
from ssql_det.core.gradients import read_losses
from ssql_det.d2 import CfgNode
from ssql_det.detect.evaluation_data import Batch
from ssql_det.quant import Bits
from ssql_det.quant.switchable_norms import SwitchableNorms
from ssql_det.quant.training import QuantizerTraining

TOTAL_LOSS = "total_loss"
_DIVERGENCE_ADVICE = "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and train in another OUTPUT_DIR"


@dataclass(frozen=True, eq=False)
class PassLosses:
    """The losses of a pass by name, detached, and their sum, called ``total_loss``."""

    losses: dict[str, Tensor]
    bits: Bits = Bits.FP  # of the pass

    def name_values(self, values: Iterable[float]) -> dict[str, float]:
        """These values by the names of the losses, as curves have them."""
        prefix = "" if self.bits == Bits.FP else "quantized_"
        return {prefix + name: value for name, value in zip(self.losses, values, strict=True)}


class TrainingStep:
    """Float training: a pass over each micro-batch. ``model`` is the detector, distributed if there are several ranks.

    Gradients are added to those of the parameters, and averaged over the ranks once, in the last backward pass.
    """

    def __init__(self, num_micro_batches: int = 1, is_bfloat16: bool = False) -> None:
        self.num_micro_batches, self.is_bfloat16 = num_micro_batches, is_bfloat16
        self.trained = nn.ModuleDict()  # what is trained beside the detector, by name
        self.quantizers: QuantizerTraining | None = None  # among these, at rates of their own
        self.switchable_norms: SwitchableNorms | None = None  # among these, for evaluations
        self.has_unused_parameters = False  # of the detector, in the last pass, which averages gradients over the ranks

    def __call__(self, model: nn.Module, batches: Iterable[Batch], iteration: int) -> list[PassLosses]:
        """``iteration`` counts from 0. There is a batch for each micro-batch."""
        return [
            PassLosses(self.run_pass(model, batch, iteration, is_last=index == self.num_micro_batches))
            for index, batch in enumerate(batches, 1)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of what is trained beside the detector, by name; empty if there is nothing."""
        return {name: state for name, part in self._parts.items() if (state := part.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; a ``KeyError``, or what torch raises, if it does not fit."""
        for name in self.state_dict():
            self._parts[name].load_state_dict(state[name])

    @property
    def _parts(self) -> dict[str, Any]:
        return {**self.trained, **({} if self.quantizers is None else {"quantizers": self.quantizers})}

    def save_trained(self, cfg: CfgNode, folder: Path) -> None:
        """Write what an evaluation of the trained detector needs beside its checkpoint; every rank calls it."""

    def run_pass(
        self,
        model: nn.Module,
        batch: Batch,
        iteration: int,
        is_last: bool,
        num_passes: int = 1,
        compute_more_losses: Callable[[], Mapping[str, Tensor]] = dict,
    ) -> dict[str, Tensor]:
        """A forward and a backward pass over a micro-batch, one of ``num_passes`` whose losses are averaged.

        ``compute_more_losses`` is called between the two; what it returns is added to the losses of the detector.
        """
        with _syncing_gradients(model, is_last):
            losses = {**compute_losses(model, batch, iteration, self.is_bfloat16), **compute_more_losses()}
            total_loss = torch.stack(list(losses.values())).sum()
            (total_loss / (self.num_micro_batches * num_passes)).backward()
        return {name: loss.detach() for name, loss in {TOTAL_LOSS: total_loss, **losses}.items()}


def compute_losses(model: nn.Module, batch: Batch, iteration: int, is_bfloat16: bool) -> dict[str, Tensor]:
    """The losses of a forward pass."""
    device = next(model.parameters()).device.type
    with translate_divergence(iteration), torch.autocast(device, torch.bfloat16, enabled=is_bfloat16):
        losses: dict[str, Tensor] = model(batch)
    return losses


@contextmanager
def translate_divergence(iteration: int) -> Iterator[None]:
    """Translate FloatingPointError, which the engine raises for NaN or infinite proposals, to ``UserError``."""
    try:
        yield
    except FloatingPointError as failure:
        message = f"the training diverged at iteration {iteration} ({failure}); {_DIVERGENCE_ADVICE}"
        raise UserError(message) from failure


def read_finite_losses(recorded: Sequence[PassLosses], network: nn.Module, iteration: int) -> list[dict[str, float]]:
    """The mean over ranks of each loss of each pass. A NaN or infinite loss or gradient ends the training before it
    reaches the weights."""
    losses = all_reduce_mean(torch.stack([loss for each in recorded for loss in each.losses.values()]))
    values, are_gradients_finite = read_losses(losses, network)
    remaining = iter(values)
    passes = [(each.bits, each.name_values([next(remaining) for _ in each.losses])) for each in recorded]
    for bits, named in passes:
        for name, value in named.items():
            if not name.endswith(TOTAL_LOSS) and not math.isfinite(value):
                place = _describe_place(iteration, [bits])
                raise UserError(f"{name} is {value} at {place}; {_DIVERGENCE_ADVICE}")
    if not are_gradients_finite:
        place = _describe_place(iteration, [each.bits for each in recorded])
        raise UserError(f"a gradient is not finite at {place}; {_DIVERGENCE_ADVICE}")
    return [named for _, named in passes]


def _describe_place(iteration: int, bit_widths: Iterable[Bits]) -> str:
    """Where a training diverged: at which iteration, and at which bit-widths if the passes were quantized."""
    quantized = dict.fromkeys(str(bits) for bits in bit_widths if bits != Bits.FP)
    return f"iteration {iteration}" + (f" at {' or '.join(quantized)}" if quantized else "")


def _syncing_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Average gradients over the ranks only in the last backward pass of a step."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
