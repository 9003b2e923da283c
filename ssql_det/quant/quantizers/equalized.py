"""``EqualizedQuantizer``: quantizes a tensor after its channels were rescaled, and scales the result back.

``x_q = Q(x / e) * e``, where ``Q`` is another quantizer and ``e`` has a factor per channel: see
``quant/equalization.py``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ssql_det.quant.affine import compute_dtype
from ssql_det.quant.quantizers.observers import Observer
from ssql_det.quant.quantizers.quantizer import QuantizedTensor, Quantizer
from ssql_det.quant.tensor_cache import TensorCache


class EqualizedQuantizer(Quantizer):
    """``base`` observes and quantizes ``x / equalization``. The factors are positive, in a shape that broadcasts to
    ``x``; both are saved.

    >>> from ssql_det.quant import QuantPoint, Side
    >>> from ssql_det.quant.quantizers.minmax import MinMaxWeight
    >>> from ssql_det.quant.quantizers.quantizer import TensorSpec
    >>> weight = torch.tensor([[3.0, 0.9]])
    >>> quantizer = MinMaxWeight(TensorSpec(QuantPoint("fc", Side.WEIGHT), shape=(1, 2)))
    >>> quantizer(weight, bits=2), EqualizedQuantizer(quantizer, torch.tensor([2.0, 0.5]))(weight, bits=2)
    (tensor([[2., 0.]]), tensor([[2.4000, 0.6000]]))
    """

    equalization: Tensor

    def __init__(self, base: Quantizer, equalization: Tensor) -> None:
        super().__init__(base.spec)
        if not (equalization > 0).all() or not equalization.isfinite().all():
            raise ValueError(f"the equalization of {base.spec.point.key} has factors that are not positive numbers")
        shape = base.spec.shape
        if shape is not None and torch.broadcast_shapes(equalization.shape, shape) != shape:
            raise ValueError(f"the equalization of {base.spec.point.key} does not fit a weight of shape {list(shape)}")
        self.base = base
        self.supported_bits = base.supported_bits
        self.register_buffer("equalization", equalization)
        self._weights: TensorCache[Tensor] = TensorCache()

    @property
    def observer(self) -> Observer | None:
        return self.base.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self.base.observer = observer

    def observe(self, x: Tensor) -> Tensor:
        self.base.observe(self._divide(x))
        return x

    def forward(self, x: Tensor, bits: int) -> Tensor:
        quantized = self.base(self._divide(x), bits)
        return (quantized * self._get_factors(x)).to(x.dtype)

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        quantized = self.base.quantize(self._divide(x), bits)
        return None if quantized is None else replace(quantized, equalization=self._get_factors(x))

    def _get_factors(self, x: Tensor) -> Tensor:
        return self.equalization.to(x.device, compute_dtype(x))

    def _divide(self, x: Tensor) -> Tensor:
        """``x / equalization``. That of a weight is kept, since ``base`` may search its scale once for each tensor."""
        if not self.spec.point.is_weight or (torch.is_grad_enabled() and x.requires_grad):
            return x / self._get_factors(x)
        return self._weights.get(x, 0, lambda: x / self._get_factors(x))
