"""A mask as COCO has it: run lengths, or polygons along its pixels' edges that rasterize back to it, bit for bit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Corner = tuple[int, int]  # (x, y) on the grid between the pixels

_RIGHT_OF = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}


def polygons(mask: Mask) -> list[list[float]]:
    """COCO polygons ``[x1, y1, x2, y2, ...]`` whose union is the mask. A hole is cut open, for they know none.

    >>> polygons(np.ones((1, 2), bool))
    [[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 0.0, 1.0]]
    """
    loops = _loops(mask)
    holes = [loop for loop in loops if _area(loop) < 0]
    if not holes:
        return [[float(value) for corner in loop for value in corner] for loop in loops]
    column = (min(x for x, _ in holes[0]) + max(x for x, _ in holes[0])) // 2
    left, right = mask.copy(), mask.copy()
    left[:, column:], right[:, :column] = False, False
    return polygons(left) + polygons(right)


def run_lengths(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed RLE: lengths of runs down the columns, beginning with a run of zeros."""
    column_wise = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(column_wise, prepend=False)).tolist()
    bounds = [0, *changes, len(column_wise)]
    return {"size": list(mask.shape), "counts": [end - start for start, end in pairwise(bounds)]}


def _loops(mask: Mask) -> list[list[Corner]]:
    """Closed walks along the mask's edge with the mask on the right: clockwise outside, the other way in holes."""
    ahead = _edges(mask)
    loops = []
    while ahead:
        start = next(iter(ahead))
        corner, heading = start, ahead[start][0]
        loop: list[Corner] = []
        while corner in ahead:
            # Where two pixels touch by a corner, turn right: each keeps its own loop.
            turn = _RIGHT_OF[heading] if _RIGHT_OF[heading] in ahead[corner] else ahead[corner][0]
            if turn != heading or not loop:
                loop.append(corner)
            heading = turn
            ahead[corner].remove(heading)
            if not ahead[corner]:
                del ahead[corner]
            corner = (corner[0] + heading[0], corner[1] + heading[1])
            if corner == start:
                break
        loops.append(loop)
    return loops


def _edges(mask: Mask) -> dict[Corner, list[Corner]]:
    """From each corner, the directions in which an edge of the mask leaves it."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    ahead: dict[Corner, list[Corner]] = {}
    neighbours = (  # (is the neighbour outside?, where the edge starts in the pixel, where it goes)
        (~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (~padded[1:-1, 2:], (1, 0), (0, 1)),
        (~padded[2:, 1:-1], (1, 1), (-1, 0)),
        (~padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for outside, (right, down), heading in neighbours:
        for y, x in np.argwhere(inside & outside):
            ahead.setdefault((int(x) + right, int(y) + down), []).append(heading)
    return ahead


def _area(loop: list[Corner]) -> float:
    """Twice the signed area: positive when walked clockwise in image coordinates."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, [*loop[1:], loop[0]], strict=True))
