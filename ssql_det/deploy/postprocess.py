"""From the outputs of an exported detector to detections in the given image: Detectron2's ``detector_postprocess``.

In NumPy and in float32, as the engine computes it: boxes are scaled and clipped, empty ones dropped, masks pasted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssql_det.images.masks import paste_masks


@dataclass(frozen=True, eq=False)
class RawDetections:
    """The outputs of an exported detector: boxes [N, 4] in pixels of the resized image, scores [N], classes [N],
    mask probabilities [N, M, M] or ``None``, and the (height, width) of the resized image."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.float32] | None
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, selected: Any) -> RawDetections:
        """Those of a slice, of indices or of a boolean vector."""
        masks = None if self.masks is None else self.masks[selected]
        return RawDetections(self.boxes[selected], self.scores[selected], self.classes[selected], masks, self.size)


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in an image: boxes [N, 4] as (x0, y0, x1, y1) in its pixels, scores [N] in descending order,
    class indices [N], masks [N, height, width] or ``None``, and the name of each class index."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_] | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)


def scale_detections(raw: RawDetections, height: int, width: int, min_score: float = 0.0) -> RawDetections:
    """Detections of at least this score, with boxes in pixels of the image of this size; empty boxes are dropped.

    >>> raw = RawDetections(np.float32([[1, 1, 5, 9], [7, 7, 7, 9]]), np.float32([0.9, 0.8]), np.array([0, 1]), None,
    ...                     size=(8, 8))
    >>> scale_detections(raw, 16, 8).boxes.tolist()
    [[1.0, 2.0, 5.0, 16.0]]
    """
    raw = raw[raw.scores >= min_score]
    resized_height, resized_width = raw.size
    scale = np.array([width / resized_width, height / resized_height] * 2, np.float32)
    boxes = np.clip(raw.boxes * scale, np.float32(0), np.array([width, height] * 2, np.float32))
    is_nonempty = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    scaled = RawDetections(boxes, raw.scores, raw.classes, raw.masks, (height, width))
    return scaled[is_nonempty]


def finish_detections(
    raw: RawDetections, height: int, width: int, class_names: tuple[str, ...], min_score: float = 0.0
) -> Detections:
    """The detections of at least this score in the given image of this size, their masks pasted into it."""
    scaled = scale_detections(raw, height, width, min_score)
    masks = None if scaled.masks is None else paste_masks(scaled.masks, scaled.boxes, height, width)
    return Detections(scaled.boxes, scaled.scores, scaled.classes, masks, class_names)
