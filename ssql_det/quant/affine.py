"""Uniform affine quantization as pure functions, which equal these formulas to the last bit.

==========  ===============================================================================
weight      per output channel, symmetric: ``s = max|w| / ((2^b - 1) / 2)``,
            ``q = clamp(round(w / s), -2^(b-1), 2^(b-1) - 1)``, ``w_q = q * s``
activation  per tensor, asymmetric: ``s = (max - min) / (2^b - 1)``, ``z = -round(min / s)``,
            ``q = clamp(round(x / s) + z, 0, 2^b - 1)``, ``x_q = (q - z) * s``
==========  ===============================================================================

``b`` is the bit-width; ``min`` and ``max`` are the bounds of the activation's range.

Rounding is half to even and the division is exact (multiplying by ``1/s`` instead changes the largest element in one
channel out of six). Where ``s = 0``, as for a range of one value, the elements of the tensor are not changed.

Gradient: straight through ``round``; then 1 where the rounded integer lies within ``[qmin, qmax]``, bounds included,
and 0 elsewhere. This was the gradient of ``torch.clamp`` when SSQL was published; since torch 2.14 the gradient is 0 at
the bounds, so autograd does not differentiate ``clamp`` here. The gradient also flows through a weight's scale; an
activation's range is a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_ELEMENTS = 1 << 18  # of a block: 1 MB in float32, which stays in a core's cache between operations


@dataclass(frozen=True)
class QParams:
    """Scale and zero point: an integer ``q`` in ``[qmin, qmax]`` stands for ``(q - zero_point) * scale``.

    ``scale`` and ``zero_point`` are scalars, or one per channel in a shape that broadcasts to the tensor.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that ``x`` is quantized in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tensor_version(tensor: Tensor) -> tuple[int, int]:
    """A value that changes with every in-place change; for an inference tensor, in-place changes are not noticed."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def in_memory_order(x: Tensor) -> Tensor:
    """A view of ``x`` with its axes sorted by stride: contiguous wherever its elements are densely stored.

    Some operations, such as ``aminmax``, are many times faster on it than on a tensor in channels last.

    >>> in_memory_order(images.to(memory_format=torch.channels_last)).is_contiguous()
    True
    """
    return x.permute(sorted(range(x.ndim), key=x.stride, reverse=True))


def choose_qparams(min_val: Tensor, max_val: Tensor, bits: int, *, symmetric: bool = False) -> QParams:
    """Scale and zero point for a range; with ``symmetric`` the range is [-m, m], where m is the larger magnitude.

    >>> choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    QParams(scale=tensor(1.), zero_point=tensor(1.), qmin=0, qmax=3)
    """
    if symmetric:
        scale = _divide(torch.maximum(min_val.abs(), max_val.abs()), (2**bits - 1) / 2)
        return QParams(scale, torch.zeros_like(scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    scale = _divide(max_val - min_val, 2**bits - 1)
    zero_point = -torch.round(min_val / _replace_zeros(scale))
    return QParams(scale, zero_point, 0, 2**bits - 1)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Quantize and dequantize ``x``; shape and dtype are kept, half precision is computed in float32.

    Saves one byte per element for the backward pass, and ``x`` itself if the scale needs a gradient.

    >>> qparams = choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
    >>> fake_quantize(torch.tensor([-3.0, 0.4, 0.6, 9.0]), qparams)
    tensor([-1.,  0.,  1.,  2.])
    """
    if x.numel() == 0:
        return x
    scale, zero_point = _convert_qparams(qparams, x)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        output: Tensor = _FakeQuantize.apply(x, scale, zero_point, qparams.qmin, qparams.qmax)
        return output
    return _fake_quantize(x, scale, zero_point, qparams.qmin, qparams.qmax)


def fake_quantize_weight(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """Quantize and dequantize ``weight`` per output channel, symmetric; gradients also flow through the scale.

    ``axis`` is the axis of the output channels: 0, or 1 for a transposed convolution.
    """
    if weight.numel() == 0:
        return weight
    converted = weight.to(compute_dtype(weight))
    if torch.is_grad_enabled() and converted.requires_grad:
        output: Tensor = _FakeQuantizeWeight.apply(converted, bits, axis)
    else:
        max_abs = max_abs_per_channel(converted, axis)
        output = fake_quantize(converted, choose_qparams(-max_abs, max_abs, bits, symmetric=True))
    return output.to(weight.dtype)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """The integers of ``x``, in floating point; where the scale is 0 they are the zero point.

    >>> quantize(torch.tensor([-3.0, 0.4, 9.0]), choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2))
    tensor([0., 1., 3.])
    """
    scale, zero_point = _convert_qparams(qparams, x)
    integers = torch.round(x.to(scale.dtype) / _replace_zeros(scale)) + zero_point
    return torch.where(scale == 0, zero_point, integers.clamp(qparams.qmin, qparams.qmax))


def max_abs_per_channel(weight: Tensor, axis: int) -> Tensor:
    """The largest magnitude of each output channel, in a shape that broadcasts to the weight."""
    reduced = [dim for dim in range(weight.ndim) if dim != axis % weight.ndim]
    return torch.maximum(weight.amax(reduced, keepdim=True), -weight.amin(reduced, keepdim=True))


def _fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, in_range: Tensor | None = None
) -> Tensor:
    """Fake-quantize in blocks that fit the cache; on a GPU in one kernel. ``in_range`` receives whether each integer is
    in [qmin, qmax]."""
    out = torch.empty_like(x)
    if _has_kernel(x, scale):
        from ssql_det.quant import triton_kernel

        with torch.cuda.device(x.device):
            triton_kernel.launch(x, out, in_range, scale, zero_point, qmin, qmax)
        return out
    safe_scale, masks = _replace_zeros(scale), [] if in_range is None else [in_range]
    for x_block, out_block, s, z, *mask in _split_blocks(x, out, safe_scale, zero_point, *masks):
        is_converted = x.dtype != scale.dtype
        rounded = torch.div(x_block.to(s.dtype), s, out=None if mask or is_converted else out_block).round_().add_(z)
        clamped = torch.clamp(rounded, qmin, qmax, out=None if is_converted else out_block)
        if mask:
            mask[0].copy_(rounded.eq_(clamped))  # faster than a comparison that makes booleans
        clamped.sub_(z).mul_(s)
        if is_converted:
            out_block.copy_(clamped)
    return _restore_zero_scale(scale, x, out)


def _has_kernel(x: Tensor, scale: Tensor) -> bool:
    """Whether ``quant/triton_kernel.py`` can quantize ``x``: on a GPU with Triton, with a scale for the whole tensor or
    for each entry of its first axis."""
    if not x.is_cuda or scale.dtype != torch.float32 or find_spec("triton") is None:
        return False
    is_per_entry = scale.ndim == x.ndim > 0 and len(scale) == len(x) == scale.numel() and x.stride(0) == max(x.stride())
    if not in_memory_order(x).is_contiguous() or not (scale.numel() == 1 or is_per_entry):
        return False
    from ssql_det.quant import triton_kernel

    return triton_kernel.is_available()


class _FakeQuantize(torch.autograd.Function):
    """Saves a boolean per element for the backward pass, and ``x`` only if the scale is learned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
        in_range = torch.empty_like(x, dtype=torch.bool)
        ctx.save_for_backward(in_range, scale, zero_point, *([x] if ctx.needs_input_grad[1] else []))
        ctx.qmin, ctx.qmax = qmin, qmax
        return _fake_quantize(x, scale, zero_point, qmin, qmax, in_range)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        in_range, scale, zero_point, *saved = ctx.saved_tensors
        grad_x = _restore_zero_scale(scale, grad, torch.where(in_range, grad, 0))
        grad_scale = None
        if saved:
            # Converted, because the integers are too large for half precision.
            x, grad = saved[0].to(scale.dtype), grad.to(scale.dtype)
            _, grad_scale = _compute_gradients(x, grad, _replace_zeros(scale), zero_point, ctx.qmin, ctx.qmax)
            grad_scale = grad_scale.sum_to_size(scale.shape) * (scale != 0)
        return grad_x, grad_scale, None, None, None


class _FakeQuantizeWeight(torch.autograd.Function):
    """Symmetric, per channel, with the gradient of the scale. Saves no large tensor but the weight itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, axis: int) -> Tensor:
        max_abs = max_abs_per_channel(weight, axis)
        qparams = choose_qparams(-max_abs, max_abs, bits, symmetric=True)
        ctx.save_for_backward(weight, max_abs, qparams.scale)
        ctx.qmin, ctx.qmax = qparams.qmin, qparams.qmax
        return _fake_quantize(weight, qparams.scale, qparams.zero_point, qparams.qmin, qparams.qmax)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, max_abs, scale = ctx.saved_tensors
        out = torch.empty_like(weight)
        reduced = [dim for dim, size in enumerate(max_abs.shape) if size == 1]
        # Gradients are summed over whole channels, so the weight is split only if channels are its first axis.
        block_rows = _choose_block_rows(weight) if len(max_abs) == len(weight) else len(weight)
        for w, g, out_block, m, s in _split_rows(block_rows, weight, grad, out, max_abs, _replace_zeros(scale)):
            grad_weight, grad_scale = _compute_gradients(w, g, s, torch.zeros_like(s), ctx.qmin, ctx.qmax)
            grad_max_abs = grad_scale.sum(reduced, keepdim=True) / ((ctx.qmax - ctx.qmin) / 2)
            is_max = w.abs().eq_(m)  # as in torch.amax, equally large elements share the gradient
            grad_each = grad_max_abs / is_max.sum(reduced, keepdim=True)
            torch.add(grad_weight, is_max.mul_(w.sign()).mul_(grad_each), out=out_block)
        return _restore_zero_scale(scale, grad, out), None, None


def _compute_gradients(
    x: Tensor, grad: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """Return the gradient of ``x``, and the gradient of the scale per element, not yet summed."""
    ratio = x / scale
    rounded = ratio.round().add_(zero_point)
    integer = rounded.clamp(qmin, qmax)
    in_range = rounded.eq_(integer)  # as 1 and 0, which is many times faster than booleans
    # d(integer * s)/ds = integer + s * d(integer)/ds, and in the range d(integer)/ds = -x / s^2
    grad_scale = integer.sub_(zero_point).sub_(ratio.mul_(in_range)).mul_(grad)
    return in_range.mul_(grad), grad_scale


def _split_blocks(
    x: Tensor, out: Tensor, scale: Tensor, zero_point: Tensor, *masks: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching blocks of the tensors: of flat memory if the scale is a scalar, else of the first axis."""
    tensors = [x, out, *masks]
    if scale.ndim == 0 and in_memory_order(x).is_contiguous():
        tensors = [in_memory_order(tensor).view(-1) for tensor in tensors]
    x, out, *flat_masks = tensors
    return _split_rows(_choose_block_rows(x), x, out, scale, zero_point, *flat_masks)


def _split_rows(block_rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield ``block_rows`` entries of the first axis at a time; tensors of another length are yielded whole."""
    length = len(tensors[0])
    for start in range(0, length, block_rows):
        block = slice(start, start + block_rows)
        yield tuple(tensor[block] if tensor.ndim and len(tensor) == length else tensor for tensor in tensors)


def _choose_block_rows(x: Tensor) -> int:
    """The number of entries of the first axis that fit into the cache; on a GPU, the length of the axis."""
    return len(x) if x.is_cuda else max(1, _BLOCK_ELEMENTS * len(x) // x.numel())


def _restore_zero_scale(scale: Tensor, original: Tensor, computed: Tensor) -> Tensor:
    """``original`` where the scale is 0, else ``computed``."""
    is_zero = scale == 0
    return computed if _reads_without_sync(is_zero) and not is_zero.any() else torch.where(is_zero, original, computed)


def _reads_without_sync(x: Tensor) -> bool:
    """Whether Python can read values without waiting, as on the CPU; on a GPU it waits for all queued operations."""
    return x.device.type == "cpu"


def _divide(x: Tensor, divisor: float) -> Tensor:
    """``x / divisor``, on a GPU too: there torch divides by a number as a product with its reciprocal."""
    return x / x.new_full((), divisor)


def _replace_zeros(scale: Tensor) -> Tensor:
    """1 where the scale is 0, so that it can be divided by."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _convert_qparams(qparams: QParams, x: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the zero point in the type that ``x`` is quantized in, on its device: torch divides a CUDA tensor
    by a CPU scalar as a product with 1/s."""
    dtype = compute_dtype(x)
    return qparams.scale.to(x.device, dtype), qparams.zero_point.to(x.device, dtype)
