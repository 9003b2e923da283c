"""Scenes: images of up to eight digits, which may overlap or cross the border, with exact boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssql_det.toydata.digits import Alpha, Digits, add_noise, blend, choose_colour, draw_background, warp_digit

SIDES = (128, 320)
MOST_OBJECTS = 8

_EMPTY_FRACTION = 0.04  # of the scenes have no object
_CROWD_FRACTION = 0.08  # of the scenes have a crowd: small digits of one class, annotated as one object
_MIN_VISIBLE = 0.35  # fraction of an object; with less it could not be recognized
_DIFFICULT_VISIBLE = 0.6  # an object of which less is visible is marked as difficult,
_DIFFICULT_SIZE = 24.0  # and so is one of smaller digits, in pixels
_MAX_ATTEMPTS = 12
Mask = NDArray[np.bool_]
Corner = tuple[int, int]  # (x, y) of a pixel's corner
_RIGHT_TURN = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}


@dataclass(frozen=True)
class SceneObject:
    """``mask`` [H, W] covers the visible part; ``full_area`` also counts what is hidden or outside the image; ``size``
    is the height of its digits in pixels."""

    label: int
    full_area: float
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
    def visible_fraction(self) -> float:
        return float(self.mask.sum() / self.full_area)

    @property
    def difficult(self) -> bool:
        return self.crowd or self.visible_fraction < _DIFFICULT_VISIBLE or self.size < _DIFFICULT_SIZE


@dataclass(frozen=True)
class Scene:
    """An image [H, W, 3], uint8 RGB, and its objects."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


def make_scene(
    rng: np.random.Generator, digits: Digits, sides: tuple[int, int] = SIDES, difficulty: float = 0.5
) -> Scene:
    """Draw a random scene.

    At difficulty 0 the digits are dark and of medium size on flat colours; from 0.5 on they are dark or light and of
    any size, the backgrounds are photographs, and there is noise.

    >>> from ssql_det.toydata.digits import load_digit_split
    >>> scene = make_scene(np.random.default_rng(0), load_digit_split("train"))
    >>> scene.image.shape, scene.objects[0].box
    ((292, 250, 3), (208, 0, 226, 23))
    """
    height, width = (int(rng.integers(sides[0], sides[1] + 1)) for _ in range(2))
    strength = min(1.0, 2 * difficulty)
    texture = strength * float(rng.uniform(0.2, 1))
    image = draw_background(rng, height, width, texture, whiten=0.6 * (1 - strength))
    count = (
        0 if rng.random() < _EMPTY_FRACTION else int(rng.integers(1, round(MOST_OBJECTS * (0.5 + 0.5 * strength)) + 1))
    )
    objects: list[SceneObject] = []
    for number in range(count):
        crowd = number == 0 and rng.random() < _CROWD_FRACTION / (1 - _EMPTY_FRACTION)
        for _ in range(_MAX_ATTEMPTS):
            alpha, candidate = (
                _draw_crowd(rng, digits, height, width) if crowd else _draw_digit(rng, digits, height, width, strength)
            )
            others = [_occlude(each, candidate.mask) for each in objects]
            if min(each.visible_fraction for each in [candidate, *others]) >= _MIN_VISIBLE:
                objects = [*others, candidate]
                colour = choose_colour(rng, image, alpha, light_probability=0.5 * strength)
                image = blend(image, alpha, colour)
                break
    noisy = add_noise(rng, image, sigma=strength * float(rng.uniform(0, 8)))
    return Scene(noisy, tuple(objects))


def _draw_digit(
    rng: np.random.Generator, digits: Digits, height: int, width: int, strength: float
) -> tuple[Alpha, SceneObject]:
    index = int(rng.integers(len(digits.labels)))
    smallest, largest = 0.16 + 0.14 * (1 - strength), 0.62 - 0.02 * (1 - strength)
    size = float(min(height, width) * np.exp(rng.uniform(np.log(smallest), np.log(largest))))
    centre = rng.uniform(-0.1 * size, width + 0.1 * size), rng.uniform(-0.1 * size, height + 0.1 * size)
    return _render_object(digits, [index], [centre], size, float(rng.uniform(-20, 20)), height, width, crowd=False)


def _draw_crowd(rng: np.random.Generator, digits: Digits, height: int, width: int) -> tuple[Alpha, SceneObject]:
    label = digits.labels[rng.integers(len(digits.labels))]
    members = rng.choice(np.flatnonzero(digits.labels == label), size=int(rng.integers(4, 8)))
    size = min(float(rng.uniform(18, 28)), min(height, width) / 4)  # so that a crowd fits into the smallest scene
    spread = 0.8 * size
    middle = rng.uniform(2 * size, (width - 2 * size, height - 2 * size))
    centres = [tuple(middle + rng.uniform(-spread, spread, 2)) for _ in members]
    return _render_object(digits, [int(member) for member in members], centres, size, 0.0, height, width, crowd=True)


def _render_object(
    digits: Digits,
    members: list[int],
    centres: list[tuple[float, ...]],
    size: float,
    degrees: float,
    height: int,
    width: int,
    crowd: bool,
) -> tuple[Alpha, SceneObject]:
    """Draw on a canvas with a margin, so that the area outside the image is known."""
    margin = int(size) + 1
    canvas = np.zeros((height + 2 * margin, width + 2 * margin), np.float32)
    for member, (x, y) in zip(members, centres, strict=True):
        warped = warp_digit(digits.alphas[member], *canvas.shape, (x + margin, y + margin), size, degrees)
        canvas = np.maximum(canvas, warped)
    alpha = canvas[margin:-margin, margin:-margin]
    area, mask = float((canvas > 0.5).sum()), alpha > 0.5
    label = int(digits.labels[members[0]])
    return alpha, SceneObject(label, max(area, 1.0), mask, bool(mask.sum() < area), crowd, size)


def _occlude(hidden: SceneObject, mask: NDArray[np.bool_]) -> SceneObject:
    """The object after another one with this mask was drawn over it."""
    overlaps = bool((hidden.mask & mask).any())
    return replace(hidden, mask=hidden.mask & ~mask, occluded=True) if overlaps else hidden


def mask_to_polygons(mask: Mask) -> list[list[float]]:
    """COCO polygons ``[x1, y1, x2, y2, ...]`` whose union is the mask. They cannot have holes, so a mask with a hole is
    split through it.

    >>> mask_to_polygons(np.ones((1, 2), bool))
    [[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 0.0, 1.0]]
    """
    loops = _trace_loops(mask)
    holes = [loop for loop in loops if _signed_area(loop) < 0]
    if not holes:
        return [[float(value) for corner in loop for value in corner] for loop in loops]
    column = (min(x for x, _ in holes[0]) + max(x for x, _ in holes[0])) // 2
    left, right = mask.copy(), mask.copy()
    left[:, column:], right[:, :column] = False, False
    return mask_to_polygons(left) + mask_to_polygons(right)


def mask_to_rle(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed RLE: run lengths in column order, the first one of zeros."""
    column_wise = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(column_wise, prepend=False)).tolist()
    bounds = [0, *changes, len(column_wise)]
    return {"size": list(mask.shape), "counts": [end - start for start, end in pairwise(bounds)]}


def _trace_loops(mask: Mask) -> list[list[Corner]]:
    """Closed outlines with the mask on the right: outer ones clockwise, holes counterclockwise."""
    edges = _find_edges(mask)
    loops = []
    while edges:
        start = next(iter(edges))
        corner, direction = start, edges[start][0]
        loop: list[Corner] = []
        while corner in edges:
            # Where two pixels touch only at a corner, turn right: each gets its own loop.
            right = _RIGHT_TURN[direction]
            turn = right if right in edges[corner] else edges[corner][0]
            if turn != direction or not loop:
                loop.append(corner)
            direction = turn
            edges[corner].remove(direction)
            if not edges[corner]:
                del edges[corner]
            corner = (corner[0] + direction[0], corner[1] + direction[1])
            if corner == start:
                break
        loops.append(loop)
    return loops


def _find_edges(mask: Mask) -> dict[Corner, list[Corner]]:
    """For each corner, the directions of the mask's edges that start there."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges: dict[Corner, list[Corner]] = {}
    neighbours = (  # (whether the neighbour is outside, the edge's first corner in the pixel, its direction)
        (~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (~padded[1:-1, 2:], (1, 0), (0, 1)),
        (~padded[2:, 1:-1], (1, 1), (-1, 0)),
        (~padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for outside, (right, down), direction in neighbours:
        for y, x in np.argwhere(inside & outside):
            edges.setdefault((int(x) + right, int(y) + down), []).append(direction)
    return edges


def _signed_area(loop: list[Corner]) -> float:
    """Twice the signed area: positive when walked clockwise in image coordinates."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, [*loop[1:], loop[0]], strict=True))
