"""The arithmetic of uniform quantization: pure functions, exact to the last bit.

==========  ===============================================================================
weight      per output channel, symmetric: ``s = max|w| / ((2^b - 1) / 2)``,
            ``q = clamp(round(w / s), -2^(b-1), 2^(b-1) - 1)``, ``w_q = q * s``
activation  per tensor, asymmetric: ``s = (max - min) / (2^b - 1)``, ``z = -round(min / s)``,
            ``q = clamp(round(x / s) + z, 0, 2^b - 1)``, ``x_q = (q - z) * s``
==========  ===============================================================================

Rounding is half to even, the division a true one (a product with ``1/s`` moves the largest element of one
channel in six). An empty range (``s = 0``) passes its elements through unchanged.

Gradient: straight through ``round``, then 1 where the rounded integer lies in its range, ends included, and 0
elsewhere. (That was ``torch.clamp``'s gradient when SSQL was trained; since torch 2.14 it is 0 at the ends, hence
a function of our own.) A weight's scale is part of the graph; an activation's range is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


@dataclass(frozen=True)
class QParams:
    """A quantization grid: ``(q - zero_point) * scale`` for integers ``q`` in ``[qmin, qmax]``.

    ``scale`` and ``zero_point`` are scalars, or vectors over the channels of ``axis``.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None


def choose_qparams(
    low: Tensor, high: Tensor, bits: int, *, symmetric: bool = False, axis: int | None = None
) -> QParams:
    """The grid for a range: from its ``low`` to its ``high`` end, or symmetric about zero.

    >>> choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    QParams(scale=tensor(1.), zero_point=tensor(1.), qmin=0, qmax=3, axis=None)
    """
    if symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / ((2**bits - 1) / 2)
        return QParams(scale, torch.zeros_like(scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, axis)
    scale = (high - low) / (2**bits - 1)
    zero_point = -torch.round(low / _nonzero(scale))
    return QParams(scale, zero_point, 0, 2**bits - 1, axis)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``x`` rounded to the grid, same shape and dtype; half precision computes in float32.

    Keeps one byte an element for the backward pass.

    >>> grid = choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    >>> fake_quantize(torch.tensor([-3.0, 0.4, 0.6, 9.0]), grid)
    tensor([-1.,  0.,  1.,  2.])
    """
    if x.numel() == 0:
        return x
    work = x if x.dtype in (torch.float32, torch.float64) else x.float()
    scale, zero_point = (_broadcastable(value, qparams.axis, work) for value in (qparams.scale, qparams.zero_point))
    quantized: Tensor = _FakeQuantize.apply(work, scale, zero_point, qparams.qmin, qparams.qmax)
    return quantized.to(x.dtype)


def fake_quantize_weight(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """``weight`` on the symmetric grid of each output channel; gradients flow through the scale as well.

    ``axis`` is the output channels': 0, or 1 for a transposed convolution.
    """
    if weight.numel() == 0:
        return weight
    bound = weight.abs().amax(dim=[dim for dim in range(weight.ndim) if dim != axis])
    return fake_quantize(weight, choose_qparams(-bound, bound, bits, symmetric=True, axis=axis))


class _FakeQuantize(torch.autograd.Function):
    """In-place arithmetic on one buffer, and a boolean mask for the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
        step = _nonzero(scale)
        rounded = torch.div(x, step).round_().add_(zero_point)
        if not any(ctx.needs_input_grad):  # type: ignore[attr-defined]
            return _keep_empty_ranges(scale, x, rounded.clamp_(qmin, qmax).sub_(zero_point).mul_(step))
        clamped = rounded.clamp(qmin, qmax)
        inside = clamped == rounded
        ctx.save_for_backward(inside, scale, zero_point, *([x] if ctx.needs_input_grad[1] else []))  # type: ignore[attr-defined]
        ctx.qmin, ctx.qmax = qmin, qmax  # type: ignore[attr-defined]
        return _keep_empty_ranges(scale, x, clamped.sub_(zero_point).mul_(step))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale, zero_point, *saved = ctx.saved_tensors
        grad_x = _keep_empty_ranges(scale, grad, grad * inside)
        grad_scale = None
        if saved:
            ratio = saved[0] / _nonzero(scale)
            integer = (ratio.round() + zero_point).clamp_(ctx.qmin, ctx.qmax).sub_(zero_point)
            # d(integer * s)/ds = integer + s * d(integer)/ds, and inside the range d(integer)/ds = -x / s^2
            grad_scale = (grad * (integer - ratio * inside)).sum_to_size(scale.shape) * (scale != 0)
        return grad_x, grad_scale, None, None, None


def _keep_empty_ranges(scale: Tensor, original: Tensor, computed: Tensor) -> Tensor:
    """``original`` where the scale is 0. Asking is free on the CPU; on a GPU it would stall the stream."""
    empty = scale == 0
    return torch.where(empty, original, computed) if empty.is_cuda or empty.any() else computed


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _broadcastable(value: Tensor, axis: int | None, like: Tensor) -> Tensor:
    # On the tensor's own device: torch divides a CUDA tensor by a CPU scalar as a product with 1/s.
    value = value.to(like.device, like.dtype)
    if axis is None:
        return value
    return value.reshape([-1 if dim == axis % like.ndim else 1 for dim in range(like.ndim)])
