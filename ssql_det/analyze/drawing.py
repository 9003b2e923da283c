"""Maps of features as a picture: a panel for each bit-width, all on the same axes, coloured by class.

A class has a colour and a shape, so that who does not see the one sees the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssql_det.analyze.analysis import Map
from ssql_det.report.stylesheet import LIGHT, NUM_CURVE_COLOURS

_PANEL, _CAPTION, _EDGE, _ROW = 320, 28, 12, 22  # pixels
_MOST_ACROSS = 4  # panels
_MARK = 7
_SHAPES = (
    *(cv2.MARKER_SQUARE, cv2.MARKER_TILTED_CROSS, cv2.MARKER_TRIANGLE_UP, cv2.MARKER_DIAMOND),
    *(cv2.MARKER_CROSS, cv2.MARKER_TRIANGLE_DOWN, cv2.MARKER_STAR),
)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Canvas = NDArray[np.uint8]


def drawn(map: Map) -> bytes:
    """The panels and below them the classes, as a PNG file.

    >>> (folder / "tsne.png").write_bytes(drawn(map))
    """
    across = min(len(map.places), _MOST_ACROSS)
    panels = _panels(map.places, map.labels)
    empty = np.full_like(panels[0], 255)
    panels += [empty] * (-len(panels) % across)
    rows = [np.hstack(panels[first : first + across]) for first in range(0, len(panels), across)]
    present = [int(label) for label in map.labels.unique()]
    picture = np.vstack([*rows, _legend([(label, map.classes[label]) for label in present], rows[0].shape[1])])
    return bytes(cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])


def _panels(places: Mapping[Any, Tensor], labels: Tensor) -> list[Canvas]:
    """One scale for both axes and all panels, so that a point that moves is seen to move."""
    everything = np.concatenate([each.numpy() for each in places.values()])
    middle = (everything.max(0) + everything.min(0)) / 2
    reach = max(float((everything.max(0) - everything.min(0)).max()) / 2, 1e-12)
    scale = (_PANEL / 2 - _EDGE) / reach
    panels = []
    for name, points in places.items():
        panel = np.full((_CAPTION + _PANEL, _PANEL, 3), 255, np.uint8)
        cv2.rectangle(panel, (2, _CAPTION), (_PANEL - 3, _CAPTION + _PANEL - 3), _bgr("border"), 1)
        cv2.putText(panel, str(name), (6, _CAPTION - 9), _FONT, 0.55, _bgr("text"), 1, cv2.LINE_AA)
        for (x, y), label in zip((points.numpy() - middle) * scale + _PANEL / 2, labels.tolist(), strict=True):
            _mark(panel, (round(x), _CAPTION + round(_PANEL - y)), label)
        panels.append(panel)
    return panels


def _legend(classes: Sequence[tuple[int, str]], width: int) -> Canvas:
    longest = max(cv2.getTextSize(name, _FONT, 0.45, 1)[0][0] for _, name in classes)
    column = min(longest + 3 * _EDGE, width)
    across = max(1, width // column)
    legend = np.full((_ROW * math.ceil(len(classes) / across) + _EDGE, width, 3), 255, np.uint8)
    for place, (label, name) in enumerate(classes):
        x, y = _EDGE + place % across * column, _ROW // 2 + place // across * _ROW
        _mark(legend, (x, y), label)
        cv2.putText(legend, name, (x + 10, y + 5), _FONT, 0.45, _bgr("text"), 1, cv2.LINE_AA)
    return legend


def _mark(canvas: Canvas, place: tuple[int, int], label: int) -> None:
    colour, shape = _bgr(f"curve-{label % NUM_CURVE_COLOURS}"), _SHAPES[label % len(_SHAPES)]
    cv2.drawMarker(canvas, place, colour, shape, _MARK, 1, cv2.LINE_AA)


def _bgr(name: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(LIGHT[name][1:])
    return blue, green, red
