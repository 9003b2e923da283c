"""Scenes: one to eight digits before a photograph's texture, overlapping, cut off at the border, with exact masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssql_det.toydata.digits import Alpha, Digits, add_noise, background, ink, paint, place

SIDES = (128, 320)
MOST_OBJECTS = 8

_EMPTY = 0.04  # of the scenes have no object
_CROWD = 0.08  # of the scenes have a group of small digits of one class, annotated as one
_LEAST_VISIBLE = 0.35  # of an object: less is not a fair thing to ask for
_DIFFICULT_BELOW = 0.6
_SMALL = 24.0
_ATTEMPTS = 12
Mask = NDArray[np.bool_]
Corner = tuple[int, int]  # (x, y) on the grid between the pixels
_RIGHT_OF = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}


@dataclass(frozen=True)
class Object:
    """``mask`` [H, W] is what is visible of it; ``whole`` is its area before anything cut or covered it, and ``size``
    the side of its digits."""

    label: int
    whole: float
    mask: NDArray[np.bool_]
    truncated: bool
    crowd: bool
    size: float
    occluded: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1), ends exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def visible(self) -> float:
        return float(self.mask.sum() / self.whole)

    @property
    def difficult(self) -> bool:
        return self.crowd or self.visible < _DIFFICULT_BELOW or self.size < _SMALL


@dataclass(frozen=True)
class Scene:
    """An image [H, W, 3], uint8 RGB, and what is in it."""

    image: NDArray[np.uint8]
    objects: tuple[Object, ...]


def make_scene(
    rng: np.random.Generator, source: Digits, sides: tuple[int, int] = SIDES, difficulty: float = 0.5
) -> Scene:
    """Draw one scene; everything about it comes from ``rng``.

    At a difficulty of 0 there are dark digits of middling size on flat colours; from 0.5 on, photographs behind
    either polarity, any size and noise.

    >>> scene = make_scene(np.random.default_rng(0), load_digit_split("train"))
    """
    height, width = (int(rng.integers(sides[0], sides[1] + 1)) for _ in range(2))
    share = min(1.0, 2 * difficulty)
    image = background(rng, height, width, texture=share * float(rng.uniform(0.2, 1)), lift=0.6 * (1 - share))
    count = 0 if rng.random() < _EMPTY else int(rng.integers(1, round(MOST_OBJECTS * (0.5 + 0.5 * share)) + 1))
    painted: list[Object] = []
    for number in range(count):
        crowd = number == 0 and rng.random() < _CROWD / (1 - _EMPTY)
        for _ in range(_ATTEMPTS):
            where, candidate = (
                _draw_crowd(rng, source, height, width) if crowd else _draw(rng, source, height, width, share)
            )
            rest = [_covered_by(before, candidate.mask) for before in painted]
            if min([candidate.visible, *(before.visible for before in rest)]) >= _LEAST_VISIBLE:
                painted = [*rest, candidate]
                image = paint(image, where, ink(rng, image, where, inverted=0.5 * share))
                break
    noisy = add_noise(rng, image, sigma=share * float(rng.uniform(0, 8)))
    return Scene(noisy, tuple(painted))


def _draw(rng: np.random.Generator, source: Digits, height: int, width: int, share: float) -> tuple[Alpha, Object]:
    index = int(rng.integers(len(source.labels)))
    least, most = 0.16 + 0.14 * (1 - share), 0.62 - 0.02 * (1 - share)
    size = float(min(height, width) * np.exp(rng.uniform(np.log(least), np.log(most))))
    centre = rng.uniform(-0.1 * size, width + 0.1 * size), rng.uniform(-0.1 * size, height + 0.1 * size)
    return _put(source, [index], [centre], size, float(rng.uniform(-20, 20)), height, width, crowd=False)


def _draw_crowd(rng: np.random.Generator, source: Digits, height: int, width: int) -> tuple[Alpha, Object]:
    label = source.labels[rng.integers(len(source.labels))]
    members = rng.choice(np.flatnonzero(source.labels == label), size=int(rng.integers(4, 8)))
    size = min(float(rng.uniform(18, 28)), min(height, width) / 4)  # a crowd has room in the least scene
    spread = 0.8 * size
    middle = rng.uniform(2 * size, (width - 2 * size, height - 2 * size))
    centres = [tuple(middle + rng.uniform(-spread, spread, 2)) for _ in members]
    return _put(source, [int(member) for member in members], centres, size, 0.0, height, width, crowd=True)


def _put(
    source: Digits,
    members: list[int],
    centres: list[tuple[float, ...]],
    size: float,
    degrees: float,
    height: int,
    width: int,
    crowd: bool,
) -> tuple[Alpha, Object]:
    """Draw on a canvas with a margin, so that what the border cuts off is known."""
    margin = int(size) + 1
    whole = np.zeros((height + 2 * margin, width + 2 * margin), np.float32)
    for member, (x, y) in zip(members, centres, strict=True):
        placed = place(source.alphas[member], *whole.shape, (x + margin, y + margin), size, degrees)
        whole = np.maximum(whole, placed)
    where = whole[margin:-margin, margin:-margin]
    area, mask = float((whole > 0.5).sum()), where > 0.5
    label = int(source.labels[members[0]])
    return where, Object(label, max(area, 1.0), mask, bool(mask.sum() < area), crowd, size)


def _covered_by(before: Object, mask: NDArray[np.bool_]) -> Object:
    covered = bool((before.mask & mask).any())
    return replace(before, mask=before.mask & ~mask, occluded=True) if covered else before


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
