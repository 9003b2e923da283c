"""``pact``: activations with a trained clip for each bit-width.

After a ReLU ``y = clamp(x, 0, a)`` is quantized in ``2^b - 1`` equal steps from 0 to the clip ``a``. Where the tensor
is signed, which the source does not have, the range is ``[-a, a]``. The gradient of the clip is eq. 3 of the source,
and with a sign its mirror image:

=============  ==============  ==============
where          ``d y_q / d a`` ``d y_q / d x``
=============  ==============  ==============
``x >= a``     1               0
in the range   0               1
below 0        0               0
``x <= -a``    -1              0
=============  ==============  ==============

The source's regularization of the clip, ``lambda * a^2``, is the weight decay of quantizers in the optimizer.

Choi et al., "PACT: Parameterized clipping activation for quantized neural networks", 2018.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssql_det.core.errors import UserError
from ssql_det.quant.affine import QParams, compute_dtype, fake_quantize
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, QuantizedTensor, TensorSpec
from ssql_det.quant.quantizers.trained import TrainedRangeQuantizer


@ACTIVATIONS.register("pact")
class PactActivation(TrainedRangeQuantizer):
    """Per tensor; the numbers in ``trained`` are clips. They start at ``start``, as 10 in ``pact:10``; with 0 at the
    largest magnitude that was observed. The tensor is signed if a negative value was observed."""

    def __init__(self, spec: TensorSpec, start: float = 0.0) -> None:
        super().__init__(spec)
        if not 0 <= start < math.inf:
            raise UserError(f"the clip of pact must start above 0, as in pact:10; got {start:g}")
        self._start = start
        self._signs: tuple[Tensor, bool] | None = None  # whether the tensor with this least value is signed

    def compute_initial(self, bits: int) -> Tensor:
        min_val, max_val = self.observer.range
        return torch.maximum(max_val, -min_val) if self._start == 0 else torch.full_like(max_val, self._start)

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        clip = self.get_trained(bits).to(self.observer.range[0].dtype)
        return -clip if self._is_signed else torch.zeros_like(clip), clip

    def forward(self, x: Tensor, bits: int) -> Tensor:
        if x.numel() == 0 or self.spec.point.fixed_range is not None:
            return super().forward(x, bits)
        with torch.no_grad():
            qparams = self.get_qparams(bits)
        clip = self.get_trained(bits).to(x.device, compute_dtype(x))
        output: Tensor = _ClipAndQuantize.apply(x, clip, qparams, self._is_signed)
        return output

    @torch.no_grad()
    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        return super().quantize(x, bits)

    @property
    def _is_signed(self) -> bool:
        min_val, _ = self.observer.range
        if self._signs is None or self._signs[0] is not min_val:
            self._signs = min_val, bool(min_val < 0)
        return self._signs[1]


class _ClipAndQuantize(torch.autograd.Function):
    """Saves a byte per element for the backward pass. A clip of 0, of a tensor of zeros, changes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, qparams: QParams, is_signed: bool) -> Tensor:
        is_below = x <= -clip if is_signed else x < 0
        side = (x >= clip).to(torch.int8).sub_(is_below.to(torch.int8)).mul_(clip != 0)
        ctx.save_for_backward(side)
        ctx.is_signed, ctx.dtype = is_signed, clip.dtype
        return fake_quantize(x, qparams)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (side,) = ctx.saved_tensors
        slope = side if ctx.is_signed else side.clamp(min=0)
        return torch.where(side == 0, grad, 0), (grad.to(ctx.dtype) * slope).sum(), None, None
