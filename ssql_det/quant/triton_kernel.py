"""Fake quantization of a GPU tensor in one pass over memory; plain torch operations need seven.

The results equal those of ``quant/affine.py`` to the last bit: division is correctly rounded, rounding is half to even,
and no product is added to anything, which a GPU could fuse into one operation that rounds once.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_ELEMENTS = 1024  # of a program of the kernel
_logger = logging.getLogger(__name__)


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x_pointer, out_pointer, in_range_pointer, scale_pointer, zero_point_pointer,
    qmin, qmax, num_elements, elements_per_channel,
    HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_element = index < num_elements
    channel = index // elements_per_channel
    scale = tl.load(scale_pointer + channel, mask=is_element, other=1.0)
    zero_point = tl.load(zero_point_pointer + channel, mask=is_element, other=0.0)
    x = tl.load(x_pointer + index, mask=is_element, other=0.0)
    ratio = tl.div_rn(x.to(tl.float32), tl.where(scale == 0, 1.0, scale))
    floor = tl.floor(ratio)
    fraction = ratio - floor
    is_floor_odd = floor != 2 * tl.floor(floor / 2)
    is_rounded_up = (fraction > 0.5) | ((fraction == 0.5) & is_floor_odd)
    rounded = tl.where(is_rounded_up, floor + 1, floor) + zero_point
    clamped = tl.clamp(rounded, qmin, qmax, propagate_nan=tl.PropagateNan.ALL)
    out = tl.where(scale == 0, x.to(tl.float32), (clamped - zero_point) * scale)
    tl.store(out_pointer + index, out.to(out_pointer.dtype.element_ty), mask=is_element)
    if HAS_MASK:
        tl.store(in_range_pointer + index, (rounded == clamped).to(tl.uint8), mask=is_element)


@cache
def is_available() -> bool:
    """Whether the kernel runs here; Triton compiles it with a C compiler. Otherwise a warning is logged, once."""
    try:
        one = torch.ones(1, device="cuda")
        launch(one, torch.empty_like(one), None, one, one, 0, 1)
    except Exception as error:  # of a compiler, of a driver, of Triton
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _logger.warning("fake quantization runs without its Triton kernel, in several passes: %s", reason)
        return False
    return True


def launch(
    x: Tensor, out: Tensor, in_range: Tensor | None, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> None:
    """Fake-quantize ``x`` into ``out``. ``in_range`` receives whether each integer is in [qmin, qmax].

    The elements of ``x``, ``out`` and ``in_range`` are taken in the order of memory, which must be dense, and the same
    in all three. ``scale`` and ``zero_point``, in float32, have one element, or one for each entry of the first axis,
    which then must be the outermost in memory.
    """
    num_elements = x.numel()
    _kernel[(triton.cdiv(num_elements, _BLOCK_ELEMENTS),)](
        *(x, out, out if in_range is None else in_range.view(torch.uint8), scale.contiguous(), zero_point.contiguous()),
        *(float(qmin), float(qmax), num_elements, num_elements // scale.numel()),
        HAS_MASK=in_range is not None,
        BLOCK=_BLOCK_ELEMENTS,
    )
