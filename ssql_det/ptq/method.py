"""``Method``: what a reconstruction learns with, a value for each method. A new method is one file::

@METHODS.register("mine")                                # the name of its weight quantizer in a scheme
@dataclass(frozen=True)
class Mine(Method):
    rounding_weight: float = 0.1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssql_det.core.registry import Registry
from ssql_det.ptq.blocks import Block
from ssql_det.quant import QuantizedTensor, Quantizer


@dataclass(frozen=True)
class Method:
    """Minimize, with Adam, the error of a block's outputs plus ``rounding_weight`` times AdaRound's regularization.

    The regularization begins after the part ``warm_up`` of the iterations; from there ``beta`` falls linearly. The
    learning rate of the steps of activations is in units of each step, and falls to 0 as a cosine. ``is_weighted``:
    squared errors are weighted by squared gradients of the network's loss, see ``fisher``.
    """

    rounding_weight: float = 0.01
    beta_start: float = 20.0
    beta_end: float = 2.0
    warm_up: float = 0.2
    learning_rate: float = 3e-2  # of ``v``; the sources have 1e-3 for 20 times as many iterations
    step_learning_rate: float = 2e-3
    is_weighted: bool = False

    def split_blocks(self, blocks: Sequence[Block], layers: Sequence[str]) -> tuple[Block, ...]:
        """The blocks that are reconstructed one after the other, for the blocks of a network and paths of its quantized
        layers."""
        return tuple(blocks)

    def mix_inputs(self, inputs: Any, float_inputs: Any, generator: torch.Generator) -> Any:
        """The inputs of a block in training, from those in the quantized and in the float network."""
        return inputs

    def wrap_activation(self, quantizer: Quantizer, generator: torch.Generator) -> Quantizer:
        """The quantizer that takes the place of an activation's in training."""
        return quantizer

    def compute_beta(self, progress: float) -> float | None:
        """``beta`` after a part of the iterations; ``None`` without regularization.

        >>> Method().compute_beta(0.1), Method().compute_beta(0.2), Method().compute_beta(1)
        (None, 20.0, 2.0)
        """
        if progress < self.warm_up:
            return None
        annealed = (progress - self.warm_up) / (1 - self.warm_up) if self.warm_up < 1 else 1.0
        return self.beta_start + (self.beta_end - self.beta_start) * annealed


METHODS: Registry[Callable[[], Method]] = Registry("reconstruction method")


class FloatActivation(Quantizer):
    """Leaves an activation as it is; ``quantize`` is that of its quantizer."""

    def __init__(self, base: Quantizer) -> None:
        super().__init__(base.spec)
        self.base = base

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return x

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        return self.base.quantize(x, bits)
