"""``qdrop``: reconstruct blocks while the quantization of activations is dropped at random.

In each iteration each element of an activation is quantized with a probability of 1/2, and each element of the block's
input is that of the quantized network with a probability of 1/2, else that of the float network.

Wei et al., "QDrop: randomly dropping quantization for extremely low-bit post-training quantization", ICLR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssql_det.ptq.blocks import list_tensors, replace_tensors
from ssql_det.ptq.method import METHODS, Method
from ssql_det.quant import QuantizedTensor, Quantizer


@METHODS.register("qdrop")
@dataclass(frozen=True)
class QDrop(Method):
    """Whole blocks, with activations quantized with this probability."""

    probability: float = 0.5

    def mix_inputs(self, inputs: Any, float_inputs: Any, generator: torch.Generator) -> Any:
        pairs = zip(list_tensors(inputs), list_tensors(float_inputs), strict=True)
        return replace_tensors(inputs, iter([_mix(*pair, self.probability, generator) for pair in pairs]))

    def wrap_activation(self, quantizer: Quantizer, generator: torch.Generator) -> Quantizer:
        return DroppingQuantizer(quantizer, self.probability, generator)


class DroppingQuantizer(Quantizer):
    """Quantizes each element with this probability; a new draw at each call."""

    def __init__(self, base: Quantizer, probability: float, generator: torch.Generator) -> None:
        super().__init__(base.spec)
        self.base, self._probability, self._generator = base, probability, generator
        self.observer = base.observer

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return _mix(self.base(x, bits), x, self._probability, self._generator)

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        return self.base.quantize(x, bits)


def _mix(quantized: Tensor, original: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Elements of ``quantized`` with this probability, else of ``original``."""
    draws = torch.rand(original.shape, generator=generator, device=original.device)
    return torch.where(draws < probability, quantized, original)
