"""An exported detector, run by onnxruntime on the CPU. Needs NumPy, Pillow and onnxruntime; imports no torch."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssql_det.core.errors import UserError
from ssql_det.deploy.postprocess import Detections, RawDetections, finish_detections
from ssql_det.deploy.session import INPUT_NAME, describe_failure, open_session
from ssql_det.images.reading import to_rgb_array

__all__ = ["Detections", "Detector", "RawDetections"]

_OUTPUTS = ("boxes", "scores", "classes")
_MASKS = "masks"


class Detector:
    """Detects objects in an image: a Pillow image, or an array [height, width, 3] of uint8 in RGB.

    >>> from PIL import Image
    >>> detector = Detector("detector.onnx")  # doctest: +SKIP
    >>> found = detector(Image.open("photo.jpg"), min_score=0.5)  # doctest: +SKIP
    >>> for box, score, index in zip(found.boxes, found.scores, found.classes):  # doctest: +SKIP
    ...     print(found.class_names[index], score, box)
    dog 0.97 [ 12.5  30.1 211.8 190.4]
    >>> found.masks.shape, found.masks.dtype  # doctest: +SKIP
    ((1, 480, 640), dtype('bool'))

    A call is three steps, which can be called alone: ``prepare`` resizes the image as the engine does,
    ``detect_resized`` runs the network, ``finish`` scales the boxes to the given image and pastes the masks. All of
    them may be called by several threads at a time.
    """

    _open = staticmethod(open_session)

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        """``threads`` is the number of threads that compute one image; by default one per core."""
        self.path = path
        self.session, self.metadata = self._open(path, threads)
        if self.metadata.kind != "detector":
            raise UserError(f"{path} is a {self.metadata.kind}, not a detector; export a detector")
        outputs = {each.name for each in self.session.get_outputs()}
        missing = [name for name in _OUTPUTS if name not in outputs]
        if missing:
            raise UserError(f"{path} is damaged: it has no output {missing[0]!r}; export it again")
        self.has_masks = _MASKS in outputs

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.metadata.classes

    def __call__(self, image: Image.Image | NDArray[np.uint8], min_score: float = 0.0) -> Detections:
        """The detections of at least this score, in pixels of the image; a photo is turned upright first."""
        pixels = to_rgb_array(image)
        height, width = pixels.shape[:2]
        return self.finish(self.detect_resized(self.prepare(pixels)), height, width, min_score)

    def prepare(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The network's input: the image resized as the metadata say, with their order of channels."""
        pixels = to_rgb_array(image)
        height, width = pixels.shape[:2]
        size = self.metadata.input.get_size(height, width)
        if 0 in size:
            raise UserError(f"an image of {width} x {height} pixels is too narrow: resized, it would have no pixel")
        if size != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
        if self.metadata.input.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels)

    def detect_resized(self, resized: NDArray[np.uint8]) -> RawDetections:
        """Run the network on the output of :meth:`prepare`."""
        names = (*_OUTPUTS, _MASKS) if self.has_masks else _OUTPUTS
        height, width = resized.shape[:2]
        try:
            outputs = self.session.run(names, {INPUT_NAME: resized})
        except MemoryError:
            raise
        except Exception as failure:  # the exceptions of onnxruntime have no common class
            raise UserError(
                f"{self.path} failed on an input of {width} x {height} pixels: {describe_failure(failure)}"
            ) from None
        boxes, scores, classes, masks = (*outputs, None)[:4]
        raw = RawDetections(boxes, scores, classes, masks, (height, width))
        _check_outputs(raw, len(self.class_names), self.path)
        return raw

    def finish(self, raw: RawDetections, height: int, width: int, min_score: float = 0.0) -> Detections:
        """The detections of at least this score, in pixels of the given image, whose size this is."""
        return finish_detections(raw, height, width, self.class_names, min_score)


def _check_outputs(raw: RawDetections, class_count: int, path: str | os.PathLike[str]) -> None:
    """Refuse outputs that are not those of a detector of this many classes."""
    count = len(raw.boxes) if raw.boxes.ndim else 0
    expected: list[tuple[NDArray[Any], type, tuple[int, ...]]] = [
        (raw.boxes, np.float32, (count, 4)),
        (raw.scores, np.float32, (count,)),
        (raw.classes, np.int64, (count,)),
    ]
    if raw.masks is not None:
        side = raw.masks.shape[-1] if raw.masks.ndim else 0
        expected.append((raw.masks, np.float32, (count, side, side)))
    for array, dtype, shape in expected:
        if array.dtype != dtype or array.shape != shape:
            raise UserError(f"{path} is damaged: its outputs have wrong types or shapes; export it again")
        if not np.isfinite(array).all():
            raise UserError(f"{path} gives infinite values or NaN; check its weights, and export it again")
    if count and not 0 <= raw.classes.min() <= raw.classes.max() < class_count:
        raise UserError(f"{path} is damaged: it gives classes other than 0 to {class_count - 1}; export it again")
