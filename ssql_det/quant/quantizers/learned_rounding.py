"""``adaround``, ``brecq``, ``brecq-fisher``, ``qdrop``: weights whose integers were learned by reconstruction.

A quantizer of this file only holds the result, for one bit-width: integers and the scale of each channel.
``brecq:2000`` asks for 2000 iterations of learning. What learns them uses ``SoftRounding``.

=================== ========================
adaround            Nagel et al., ICML 2020
brecq, brecq-fisher Li et al., ICLR 2021
qdrop               Wei et al., ICLR 2022
=================== ========================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssql_det.core.errors import UserError
from ssql_det.quant.quantizers.centred import straight_through
from ssql_det.quant.quantizers.quantizer import WEIGHTS, QuantizedTensor, Quantizer, TensorSpec

_MAX_ITERATIONS = 1_000_000
_INTEGER_DTYPES = (torch.int8, torch.int16, torch.int32)
_SCALE_DTYPES = (torch.float32, torch.float64)


class LearnedRounding(Quantizer):
    """The integers and the scale that ``set_integers`` was called with; both are saved, and empty before.

    The gradient of the weight is that of the quantized weight, everywhere: the integers do not depend on the weight any
    more, so no element is clipped.

    >>> from ssql_det.quant import QuantPoint, Side
    >>> quantizer = BrecqWeight(TensorSpec(QuantPoint("fc", Side.WEIGHT), shape=(1, 3)), iterations=2000)
    >>> integers, scale = torch.tensor([[-2, 0, 1]], dtype=torch.int8), torch.tensor([[0.5]])
    >>> quantizer.set_integers(QuantizedTensor(integers, scale, zero_point=torch.zeros(1, 1)))
    >>> quantizer(torch.tensor([[-0.8, 0.3, 0.4]]), bits=2)
    tensor([[-1.0000,  0.0000,  0.5000]])
    """

    method: ClassVar[str]
    integers: Tensor
    scale: Tensor

    def __init__(self, spec: TensorSpec, iterations: float = 1000) -> None:
        if not 1 <= iterations <= _MAX_ITERATIONS or iterations % 1:
            raise UserError(
                f"the iterations of {self.method} must be a whole number from 1 to {_MAX_ITERATIONS}, as in "
                f"{self.method}:2000; got {iterations:g}"
            )
        super().__init__(spec)
        self.iterations = int(iterations)
        self.register_buffer("integers", torch.empty(0, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(0))
        self._least_bits = 0  # of a grid that holds the integers

    @property
    def is_learned(self) -> bool:
        return self.scale.numel() > 0

    def set_integers(self, quantized: QuantizedTensor) -> None:
        """Keep these integers; raise a ``ValueError`` if they are not those of a weight of this shape."""
        if (quantized.zero_point != 0).any():
            raise ValueError(f"the zero point of {self.spec.point.key} is not 0")
        integers, scale = quantized.integers.detach(), quantized.scale.detach()
        self._least_bits = self._check_state(integers, scale)
        self.integers, self.scale = integers, scale

    def forward(self, x: Tensor, bits: int) -> Tensor:
        quantized = self.quantize(x, bits).dequantize()
        return straight_through(x, quantized, mask=torch.ones((), dtype=torch.bool, device=x.device))

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor:
        if not self.is_learned or self._least_bits > bits:
            raise UserError(
                f"weight={self.method} has no learned rounding at {self.spec.point.key} for this bit-width, {bits}; "
                "run `ssql-det quantize` with it"
            )
        scale = self.scale.to(x.device)
        # In the memory format of the weight, which a file does not keep and which moves results in their last digits.
        integers = torch.empty_like(x, dtype=self.integers.dtype).copy_(self.integers)
        return QuantizedTensor(integers, scale, zero_point=torch.zeros_like(scale))

    def _check_state(self, integers: Tensor, scale: Tensor) -> int:
        """Return the least bit-width of the integers; a ``ValueError`` if these are no integers and scale of a weight.

        Both are empty if nothing was learned.
        """
        name = self.spec.point.key
        if integers.dtype not in _INTEGER_DTYPES or scale.dtype not in _SCALE_DTYPES:
            raise ValueError(f"the integers of {name} are {integers.dtype}, their scale is {scale.dtype}")
        if integers.shape == scale.shape == (0,):
            return 0
        shape = integers.shape if self.spec.shape is None else self.spec.shape
        per_channel = [size if dim == self.spec.axis % len(shape) else 1 for dim, size in enumerate(shape)]
        if integers.shape != shape or list(scale.shape) != per_channel:
            raise ValueError(
                f"the integers of {name} have shape {list(integers.shape)}, their scale {list(scale.shape)}; expected "
                f"{list(shape)} and {per_channel}"
            )
        if not scale.isfinite().all() or (scale < 0).any():
            raise ValueError(f"the scale of {name} is negative or not finite")
        return _count_bits(integers)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        integers, scale = (state_dict.get(prefix + name) for name in ("integers", "scale"))
        if isinstance(integers, Tensor) and isinstance(scale, Tensor):
            self._least_bits = self._check_state(integers, scale)
            # ``load_state_dict`` copies into tensors of the same shape.
            self.integers = torch.empty_like(integers, device=self.integers.device)
            self.scale = torch.empty_like(scale, device=self.scale.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _count_bits(integers: Tensor) -> int:
    """The least number of bits of a grid that holds these integers; if all are odd, of a centred grid.

    >>> _count_bits(torch.tensor([-2, 0, 1])), _count_bits(torch.tensor([-3, 1, 3])), _count_bits(torch.tensor([2, 3]))
    (2, 2, 3)
    """
    if integers.numel() == 0:
        return 1
    low, high = (int(bound) for bound in integers.int().aminmax())
    is_odd = bool((integers % 2 != 0).all())
    magnitude = max(high, -low) if is_odd else max(high, -low - 1)  # at most 2^b - 1, or 2^(b-1) - 1
    return magnitude.bit_length() + (0 if is_odd else 1)


@WEIGHTS.register("adaround")
class AdaRoundWeight(LearnedRounding):
    """Integers that AdaRound learned."""

    method = "adaround"


@WEIGHTS.register("brecq")
class BrecqWeight(LearnedRounding):
    """Integers that BRECQ learned."""

    method = "brecq"


@WEIGHTS.register("brecq-fisher")
class BrecqFisherWeight(LearnedRounding):
    """Integers that BRECQ learned with weighted errors."""

    method = "brecq-fisher"


@WEIGHTS.register("qdrop")
class QDropWeight(LearnedRounding):
    """Integers that QDrop learned."""

    method = "qdrop"
