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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_ELEMENTS = 1 << 18  # 1 MB of float32: stays in a core's cache from one operation to the next


@dataclass(frozen=True)
class QParams:
    """A quantization grid: ``(q - zero_point) * scale`` for integers ``q`` in ``[qmin, qmax]``.

    ``scale`` and ``zero_point`` are scalars, or of a shape that goes along with the tensor's: one a channel.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a tensor is quantized in: float64 stays, all others are float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tensor_version(weight: Tensor) -> tuple[int, int]:
    """Another one after each change in place; a tensor made in inference mode cannot change."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def choose_qparams(low: Tensor, high: Tensor, bits: int, *, symmetric: bool = False) -> QParams:
    """The grid for a range: from its ``low`` to its ``high`` end, or symmetric about zero.

    >>> choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    QParams(scale=tensor(1.), zero_point=tensor(1.), qmin=0, qmax=3)
    """
    if symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / ((2**bits - 1) / 2)
        return QParams(scale, torch.zeros_like(scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    scale = (high - low) / (2**bits - 1)
    zero_point = -torch.round(low / _nonzero(scale))
    return QParams(scale, zero_point, 0, 2**bits - 1)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``x`` rounded to the grid, same shape and dtype; half precision computes in float32.

    Keeps one byte an element for the backward pass.

    >>> grid = choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    >>> fake_quantize(torch.tensor([-3.0, 0.4, 0.6, 9.0]), grid)
    tensor([-1.,  0.,  1.,  2.])
    """
    if x.numel() == 0:
        return x
    work, scale, zero_point = _beside_each_other(x, qparams)
    if torch.is_grad_enabled() and (work.requires_grad or scale.requires_grad):
        on_grid: Tensor = _FakeQuantize.apply(work, scale, zero_point, qparams.qmin, qparams.qmax)
    else:
        on_grid = _to_grid(work, scale, zero_point, qparams.qmin, qparams.qmax)
    return on_grid.to(x.dtype)


def fake_quantize_weight(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """``weight`` on the symmetric grid of each output channel; gradients flow through the scale as well.

    ``axis`` is the output channels': 0, or 1 for a transposed convolution.
    """
    if weight.numel() == 0:
        return weight
    work = weight.to(compute_dtype(weight))
    if torch.is_grad_enabled() and work.requires_grad:
        on_grid: Tensor = _FakeQuantizeWeight.apply(work, bits, axis)
    else:
        bound = max_abs_per_channel(work, axis)
        on_grid = fake_quantize(work, choose_qparams(-bound, bound, bits, symmetric=True))
    return on_grid.to(weight.dtype)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """The integers ``q`` of ``fake_quantize``, as floats; where the scale is 0 they are the zero point's.

    >>> quantize(torch.tensor([-3.0, 0.4, 9.0]), choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2))
    tensor([0., 1., 3.])
    """
    work, scale, zero_point = _beside_each_other(x, qparams)
    codes = torch.round(work / _nonzero(scale)) + zero_point
    return torch.where(scale == 0, zero_point, codes.clamp(qparams.qmin, qparams.qmax))


def straight_through(x: Tensor, on_grid: Tensor, inside: Tensor) -> Tensor:
    """The values of ``on_grid`` with the gradient of ``x``, where ``inside`` is true.

    >>> x = torch.tensor([0.4, 9.0], requires_grad=True)
    >>> straight_through(x, torch.tensor([0.5, 1.5]), torch.tensor([True, False])).sum().backward()
    >>> x.grad
    tensor([1., 0.])
    """
    through: Tensor = _StraightThrough.apply(x, on_grid, inside)
    return through


def max_abs_per_channel(weight: Tensor, axis: int) -> Tensor:
    """The largest magnitude of each output channel, broadcastable to the weight."""
    others = [dim for dim in range(weight.ndim) if dim != axis % weight.ndim]
    return torch.maximum(weight.amax(others, keepdim=True), -weight.amin(others, keepdim=True))


def _to_grid(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, inside: Tensor | None = None
) -> Tensor:
    """Block by block in the processor's cache; ``inside`` is filled with where the integers lie in their range."""
    step, out = _nonzero(scale), torch.empty_like(x)
    for source, target, width, zero, *mask in _blocks(x, out, step, zero_point, *([] if inside is None else [inside])):
        rounded = torch.div(source, width, out=None if mask else target).round_().add_(zero)
        torch.clamp(rounded, qmin, qmax, out=target)
        if mask:
            mask[0].copy_(rounded.eq_(target))  # faster than a comparison into booleans
        target.sub_(zero).mul_(width)
    return _keep_empty_ranges(scale, x, out)


class _FakeQuantize(torch.autograd.Function):
    """Keeps one boolean an element for the backward pass, and all of them only where a scale is learned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
        inside = torch.empty_like(x, dtype=torch.bool)
        ctx.save_for_backward(inside, scale, zero_point, *([x] if ctx.needs_input_grad[1] else []))
        ctx.qmin, ctx.qmax = qmin, qmax
        return _to_grid(x, scale, zero_point, qmin, qmax, inside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale, zero_point, *saved = ctx.saved_tensors
        grad_x, grad_scale = torch.where(inside, grad, 0), None
        if saved:
            _, of_scale = _pulled_back(saved[0], grad, _nonzero(scale), zero_point, ctx.qmin, ctx.qmax)
            grad_scale = of_scale.sum_to_size(scale.shape) * (scale != 0)
        return _keep_empty_ranges(scale, grad, grad_x), grad_scale, None, None, None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, on_grid: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return on_grid.to(x.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.where(ctx.saved_tensors[0], grad, 0), None, None


class _FakeQuantizeWeight(torch.autograd.Function):
    """On the grid of each channel's own bound, which the gradient reaches. Keeps nothing but the weight itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, axis: int) -> Tensor:
        bound = max_abs_per_channel(weight, axis)
        grid = choose_qparams(-bound, bound, bits, symmetric=True)
        ctx.save_for_backward(weight, bound, grid.scale)
        ctx.qmin, ctx.qmax = grid.qmin, grid.qmax
        return _to_grid(weight, grid.scale, grid.zero_point, grid.qmin, grid.qmax)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bound, scale = ctx.saved_tensors
        out = torch.empty_like(weight)
        others = [dim for dim, size in enumerate(bound.shape) if size == 1]
        rows = _rows_in_cache(weight) if len(bound) == len(weight) else len(weight)  # a channel is summed up as one
        for w, g, target, most, step in _pieces(rows, weight, grad, out, bound, _nonzero(scale)):
            grad_weight, of_scale = _pulled_back(w, g, step, torch.zeros_like(step), ctx.qmin, ctx.qmax)
            of_bound = of_scale.sum(others, keepdim=True) / ((ctx.qmax - ctx.qmin) / 2)
            decides = w.abs().eq_(most)  # as torch.amax, elements that are equally large share the gradient
            share = of_bound / decides.sum(others, keepdim=True)
            torch.add(grad_weight, decides.mul_(w.sign()).mul_(share), out=target)
        return _keep_empty_ranges(scale, grad, out), None, None


def _pulled_back(x: Tensor, grad: Tensor, step: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> tuple[Tensor, ...]:
    """The gradient of ``x``, and element by element that of the scale."""
    ratio = x / step
    rounded = ratio.round().add_(zero_point)
    integer = rounded.clamp(qmin, qmax)
    inside = rounded.eq_(integer)  # 1 and 0: many times faster than booleans
    # d(integer * s)/ds = integer + s * d(integer)/ds, and inside the range d(integer)/ds = -x / s^2
    of_scale = integer.sub_(zero_point).sub_(ratio.mul_(inside)).mul_(grad)
    return inside.mul_(grad), of_scale


def _blocks(x: Tensor, out: Tensor, scale: Tensor, zero_point: Tensor, *inside: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of the tensors that go together: of one grid in their order in memory, else of their first axis."""
    along = [x, out, *inside]
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    if scale.ndim == 0 and x.permute(order).is_contiguous():
        along = [each.permute(order).view(-1) for each in along]
    source, target, *mask = along
    return _pieces(_rows_in_cache(source), source, target, scale, zero_point, *mask)


def _pieces(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """So many entries at a time of the first tensor's first axis; what has not as many there goes along whole."""
    length = len(tensors[0])
    for start in range(0, length, rows):
        piece = slice(start, start + rows)
        yield tuple(each[piece] if each.ndim and len(each) == length else each for each in tensors)


def _rows_in_cache(x: Tensor) -> int:
    return len(x) if x.is_cuda else max(1, _BLOCK_ELEMENTS * len(x) // x.numel())


def _keep_empty_ranges(scale: Tensor, original: Tensor, computed: Tensor) -> Tensor:
    """``original`` where the scale is 0."""
    empty = scale == 0
    return computed if _reading_is_free(empty) and not empty.any() else torch.where(empty, original, computed)


def _reading_is_free(x: Tensor) -> bool:
    """On the CPU; on a GPU whoever asks a tensor for a value waits until all before it is done."""
    return x.device.type == "cpu"


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _beside_each_other(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor, Tensor]:
    """A tensor, its scale and its zero point, in the type that it is quantized in."""
    work = x.to(compute_dtype(x))
    # On the tensor's own device: torch divides a CUDA tensor by a CPU scalar as a product with 1/s.
    return work, qparams.scale.to(work), qparams.zero_point.to(work)
