"""Masks in NumPy alone: predicted masks pasted into their image, and COCO's run-length encoding (RLE).

Pasting is that of Detectron2 (``layers/mask_ops.py``), the encoding that of pycocotools (``maskApi.c``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
Floats = NDArray[np.float32]
Counts = NDArray[np.int64]

MAX_PIXELS = 2 * 89_478_485  # of a decoded mask: as large as the largest image that Pillow reads
_MAX_DIGITS = 12  # of a count; 6 digits of 5 bits are enough for MAX_PIXELS
_VALUE, _SIGN, _MORE, _FIRST = 0x1F, 0x10, 0x20, 48  # a digit's 5 bits, flags, and its offset to a printable character


class Rle(TypedDict):
    """A mask as runs down its columns, alternately of 0 and of 1, in COCO's compressed text."""

    size: list[int]  # height, width
    counts: str


def paste_masks(masks: Floats, boxes: Floats, height: int, width: int, threshold: float = 0.5) -> Masks:
    """Resample probabilities [N, S, S] from their boxes [N, 4] (x0, y0, x1, y1) to masks [N, height, width].

    Probabilities are interpolated linearly at the pixels' centres and are 0 outside a box. Of a box without an area the
    mask is empty.

    >>> paste_masks(np.ones((1, 28, 28)), np.array([[1, 0, 3, 2]]), height=2, width=4).astype(int).tolist()
    [[[0, 1, 1, 0], [0, 1, 1, 0]]]
    """
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (len(masks), 4):
        raise ValueError(f"masks must be [N, S, S] and boxes [N, 4], got {masks.shape} and {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError("a box is not finite")
    pasted = np.zeros((len(masks), height, width), np.bool_)
    for mask, (x0, y0, x1, y1), out in zip(masks, boxes, pasted, strict=True):
        rows, columns = _find_region(y0, y1, height), _find_region(x0, x1, width)
        if x1 > x0 and y1 > y0 and rows and columns:
            along_rows = _compute_weights(rows, y0, y1, len(mask)) @ mask
            soft = along_rows @ _compute_weights(columns, x0, x1, len(mask)).T
            np.greater_equal(soft, threshold, out=out[rows.start : rows.stop, columns.start : columns.stop])
    return pasted


def encode_rle(mask: Masks) -> Rle:
    """Encode a mask [height, width].

    >>> encode_rle(np.array([[0, 1], [1, 1]], bool))
    {'size': [2, 2], 'counts': '13'}
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"a mask must be boolean [height, width], got {mask.dtype} {mask.shape}")
    height = mask.shape[0]
    columns = np.flatnonzero(mask.any(axis=0))
    edges = np.zeros(0, np.int64)
    if columns.size:  # only the columns from the first to the last of an object: to walk down columns is slow
        first, end = columns[0], columns[-1] + 1
        flat = np.pad(mask[:, first:end].ravel(order="F"), 1)
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + first * height
    if not edges.size or edges[-1] != mask.size:  # the last run is one of 0
        edges = np.append(edges, mask.size)
    counts = np.diff(edges, prepend=0)
    return {"size": list(mask.shape), "counts": _write_counts(counts)}


def decode_rle(rle: Mapping[str, Any]) -> Masks:
    """Decode a mask [height, width] from compressed counts (text or bytes) or from a list of counts.

    An invalid RLE, of which no part is decoded, raises a ValueError.

    >>> decode_rle({"size": [2, 2], "counts": [1, 3]}).astype(int).tolist()
    [[0, 1], [1, 1]]
    """
    height, width = _check_size(rle.get("size"))
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        parsed = parse_counts(counts)
    elif isinstance(counts, list):
        parsed = _check_counts(counts)
    else:
        raise ValueError(f"counts must be a text or a list, not {type(counts).__name__}")
    pixels = height * width
    if parsed.size and (parsed.min() < 0 or parsed.max() > pixels):
        raise ValueError(f"a run is not from 0 to {pixels} pixels long")
    if parsed.sum() != pixels:
        raise ValueError(f"the runs have {parsed.sum()} pixels, the mask of {height}x{width} has {pixels}")
    flat = np.repeat(np.arange(len(parsed)) % 2 == 1, parsed)
    return flat.reshape(width, height).T


def _find_region(start: float, end: float, limit: int) -> range:
    """The pixels of a box along one axis, with a margin of one pixel; Detectron2 computes nothing else."""
    first = min(max(np.floor(start) - 1, 0), limit)
    return range(int(first), int(min(np.ceil(end) + 1, limit)))


def _compute_weights(pixels: range, start: np.float32, end: np.float32, size: int) -> Floats:
    """The weights [pixels, size] with which the cells of a mask along one axis of its box add up at the pixels.

    Each step is that of ``grid_sample`` in float32, so that the roundings are the same.
    """
    centres = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    relative = (centres - start) / (end - start) * 2 - 1  # -1 and 1 are the box's sides
    positions = ((relative + 1) * size - 1) / 2  # whole numbers are the cells' centres
    distances = np.abs(positions[:, None] - np.arange(size, dtype=np.float32))
    return np.maximum(1 - distances, 0)


def _write_counts(counts: Counts) -> str:
    """Each count from the fourth on is the difference to the one before the last; a number is written in digits of
    5 bits, the lowest first, with a flag in those after which another follows."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    digits, is_written = [], []
    is_open = np.ones(len(rest), np.bool_)
    while is_open.any():
        digit = rest & _VALUE
        rest >>= 5
        is_written.append(is_open)
        is_open = is_open & (rest != np.where(digit & _SIGN, -1, 0))
        digits.append(digit + _FIRST + np.where(is_open, _MORE, 0))
    text = np.stack(digits, axis=1)[np.stack(is_written, axis=1)]
    return text.astype(np.uint8).tobytes().decode("ascii")


def parse_counts(text: str | bytes) -> Counts:
    """The lengths of the runs in COCO's compressed counts, which are not checked: one may be negative.

    >>> parse_counts("13").tolist()
    [1, 3]
    """
    content = text.encode("ascii") if isinstance(text, str) else text
    digits = np.frombuffer(content, np.uint8).astype(np.int64) - _FIRST
    if digits.size and (digits.min() < 0 or digits.max() >= 64):
        raise ValueError("counts have a character that is no digit of an RLE")
    is_last = digits & _MORE == 0
    if digits.size and not is_last[-1]:
        raise ValueError("counts end within a number")
    ends = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
    if len(ends) and (ends - starts).max() > _MAX_DIGITS:
        raise ValueError("counts have a number that is too large")
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts)
    numbers = np.add.reduceat((digits & _VALUE) << 5 * places, starts) if len(ends) else np.zeros(0, np.int64)
    is_negative = digits[ends - 1] & _SIGN != 0
    numbers = numbers - np.where(is_negative, np.int64(1) << 5 * (ends - starts), 0)
    if len(numbers) and np.abs(numbers).max() > MAX_PIXELS:
        raise ValueError("counts have a number that is too large")
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _check_counts(counts: Iterable[Any]) -> Counts:
    listed = list(counts)
    if not all(type(count) is int and 0 <= count <= MAX_PIXELS for count in listed):
        raise ValueError(f"counts must be whole numbers from 0 to {MAX_PIXELS}")
    return np.array(listed, np.int64)


def _check_size(size: Any) -> tuple[int, int]:
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    if not is_pair or not all(type(side) is int and side >= 0 for side in size):
        raise ValueError(f"size must be [height, width], not {str(size)[:100]}")
    height, width = size
    if height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {height}x{width} has more than {MAX_PIXELS} pixels")
    return height, width
