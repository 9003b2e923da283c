"""A picture of an embedding: a panel for each bit-width, all with the same axes; images are points coloured by class.

Classes differ in colour and in marker, so that the picture can be read without colour vision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssql_det.analyze.analysis import Embedding
from ssql_det.core.errors import printable
from ssql_det.report.stylesheet import LIGHT, NUM_CURVE_COLOURS

# In pixels. Panels are square; a caption is above each panel.
_PANEL_SIZE, _CAPTION_HEIGHT, _MARGIN, _LEGEND_ROW_HEIGHT = 320, 28, 12, 22
_MARKER_SIZE = 7
_MAX_COLUMNS = 4  # of panels
_MARKERS = (
    *(cv2.MARKER_SQUARE, cv2.MARKER_TILTED_CROSS, cv2.MARKER_TRIANGLE_UP, cv2.MARKER_DIAMOND),
    *(cv2.MARKER_CROSS, cv2.MARKER_TRIANGLE_DOWN, cv2.MARKER_STAR),
)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Canvas = NDArray[np.uint8]  # [height, width, 3], BGR


def draw_embedding(embedding: Embedding) -> bytes:
    """The panels, and a legend of the classes below them, as a PNG file."""
    columns = min(len(embedding.coordinates), _MAX_COLUMNS)
    panels = _draw_panels(embedding.coordinates, embedding.labels)
    empty = np.full_like(panels[0], 255)
    panels += [empty] * (-len(panels) % columns)
    rows = [np.hstack(panels[first : first + columns]) for first in range(0, len(panels), columns)]
    labels = [int(label) for label in embedding.labels.unique()]
    legend = _draw_legend([(label, printable(embedding.classes[label])) for label in labels], rows[0].shape[1])
    return bytes(cv2.imencode(".png", np.vstack([*rows, legend]), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])


def _draw_panels(coordinates: Mapping[Any, Tensor], labels: Tensor) -> list[Canvas]:
    """Draw a panel for each bit-width, all at the same scale, so that an image's movement between panels is visible."""
    all_points = np.concatenate([each.numpy() for each in coordinates.values()])
    centre = (all_points.max(0) + all_points.min(0)) / 2
    half_range = max(float((all_points.max(0) - all_points.min(0)).max()) / 2, 1e-12)
    scale = (_PANEL_SIZE / 2 - _MARGIN) / half_range
    panels = []
    for bits, points in coordinates.items():
        panel = np.full((_CAPTION_HEIGHT + _PANEL_SIZE, _PANEL_SIZE, 3), 255, np.uint8)
        cv2.rectangle(
            panel, (2, _CAPTION_HEIGHT), (_PANEL_SIZE - 3, _CAPTION_HEIGHT + _PANEL_SIZE - 3), _get_bgr("border"), 1
        )
        cv2.putText(panel, str(bits), (6, _CAPTION_HEIGHT - 9), _FONT, 0.55, _get_bgr("text"), 1, cv2.LINE_AA)
        for (x, y), label in zip((points.numpy() - centre) * scale + _PANEL_SIZE / 2, labels.tolist(), strict=True):
            _draw_marker(panel, (round(x), _CAPTION_HEIGHT + round(_PANEL_SIZE - y)), label)
        panels.append(panel)
    return panels


def _draw_legend(classes: Sequence[tuple[int, str]], width: int) -> Canvas:
    """``classes``: pairs of a label and its name."""
    max_text_width = max(cv2.getTextSize(name, _FONT, 0.45, 1)[0][0] for _, name in classes)
    column_width = min(max_text_width + 3 * _MARGIN, width)
    columns = max(1, width // column_width)
    legend = np.full((_LEGEND_ROW_HEIGHT * math.ceil(len(classes) / columns) + _MARGIN, width, 3), 255, np.uint8)
    for index, (label, name) in enumerate(classes):
        x, y = _MARGIN + index % columns * column_width, _LEGEND_ROW_HEIGHT // 2 + index // columns * _LEGEND_ROW_HEIGHT
        _draw_marker(legend, (x, y), label)
        cv2.putText(legend, name, (x + 10, y + 5), _FONT, 0.45, _get_bgr("text"), 1, cv2.LINE_AA)
    return legend


def _draw_marker(canvas: Canvas, position: tuple[int, int], label: int) -> None:
    colour, marker = _get_bgr(f"curve-{label % NUM_CURVE_COLOURS}"), _MARKERS[label % len(_MARKERS)]
    cv2.drawMarker(canvas, position, colour, marker, _MARKER_SIZE, 1, cv2.LINE_AA)


def _get_bgr(name: str) -> tuple[int, int, int]:
    """A colour of the stylesheet."""
    red, green, blue = bytes.fromhex(LIGHT[name][1:])
    return blue, green, red
