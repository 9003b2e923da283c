"""Make the repairs that a scheme names, at one bit-width of a calibrated network.

The order is fixed: the rounding of weights (with the steps of trainable activation quantizers), then norms and biases,
then the tuning of the whole network; each learns in the network that the former ones left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ssql_det.ptq.blocks import Block
from ssql_det.ptq.errors import BlockResult
from ssql_det.ptq.method import METHODS
from ssql_det.ptq.reconstruction import reconstruct
from ssql_det.ptq.tuning import ComputeLoss, tune
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.bits import format_bits
from ssql_det.quant.forward import Forward
from ssql_det.quant.repair import Repair
from ssql_det.quant.scheme import NORM_CORRECTION, ROUNDING


@dataclass(frozen=True)
class RepairData:
    """What repairs learn from. ``forward`` runs the network on a batch of any kind."""

    calibration: Sequence[Any]  # batches of several images, for norms and biases
    reconstruction: Sequence[Any]  # batches of one image, of other images
    tuning: Sequence[Any]  # the same images in larger batches
    forward: Forward
    blocks: Sequence[Block]
    make_loss: Callable[[Sequence[Any]], ComputeLoss]  # on batches; its targets are the outputs of the network as it is

    @cached_property
    def reconstruction_loss(self) -> ComputeLoss:
        """Read this first while the network is float, as the other one."""
        return self.make_loss(self.reconstruction)

    @cached_property
    def tuning_loss(self) -> ComputeLoss:
        return self.make_loss(self.tuning)


@dataclass
class RepairResult:
    """What a run made at one bit-width; an interrupted run before it may have made more."""

    blocks: list[BlockResult] = field(default_factory=list)  # that were reconstructed
    num_corrected: int = 0  # norms and biases
    tuning_losses: list[float] = field(default_factory=list)  # of each step


def make_repairs(
    quantization: Quantization,
    bits: Bits,
    data: RepairData,
    overrides: Mapping[str, Bits] | None = None,
    seed: int = 0,
    save: Callable[[], None] = lambda: None,
) -> RepairResult:
    """Make the repairs that a bit-width still needs; ``save`` is called after each one, and after each block.

    A quantization that was saved in between and loaded again gets the same repairs as without interruption.
    """
    scheme, forward, result = quantization.scheme, data.forward, RepairResult()
    repair = quantization.repairs.setdefault(format_bits(bits, overrides), Repair())
    for name in quantization.list_missing_repairs(bits, overrides):
        if name == NORM_CORRECTION:
            quantization.correct_norms(bits, data.calibration, overrides, forward)
            result.num_corrected = len({tensor.rpartition(".")[0] for tensor in repair.tensors})
        elif name == ROUNDING:
            method = METHODS.get(scheme.weight.partition(":")[0])()
            result.blocks = reconstruct(
                quantization,
                bits,
                overrides,
                data.blocks,
                data.reconstruction,
                forward,
                method,
                seed,
                on_block_done=lambda _: save(),
                compute_loss=data.reconstruction_loss if method.is_weighted else None,
            )
            repair.made += (name,)
        else:
            result.tuning_losses = tune(
                quantization, bits, data.tuning, data.tuning_loss, scheme.tune, forward, overrides, seed
            )
            repair.made += (name,)
        save()
    return result
