"""Reading images, transforming annotations, and converting them to instances."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from ..config import CfgNode
from ..structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from . import transforms as T
from .catalog import MetadataCatalog

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "read_image",
    "transform_instance_annotations",
]

logger = logging.getLogger(__name__)

Array = NDArray[Any]

_MODES = {"BGR": "RGB", "RGB": "RGB", "L": "L"}  # image format -> PIL mode

_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """An image has another size than its annotation says."""


def read_image(file_name: str, format: str | None = None) -> Array:
    """Read an image, rotated by its EXIF tag: [H, W, 3] uint8 for ``"BGR"`` and ``"RGB"``, [H, W, 1] for ``"L"``.

    Without a format the pixels are as in the file.

    >>> Image.new("RGB", (353, 500)).save("000001.jpg")
    >>> read_image("000001.jpg", "BGR").shape
    (500, 353, 3)
    """
    _refuse_unknown(format)
    if not os.path.isfile(file_name):  # opening a pipe would block forever
        raise FileNotFoundError(f"the image {file_name} is missing or not a regular file")
    with open(file_name, "rb") as file:
        try:
            with Image.open(file) as image:
                return convert_PIL_to_numpy(_upright(image), format)
        except Exception as fault:  # each decoder of PIL raises its own
            raise ValueError(f"the image {file_name} cannot be decoded: {fault}") from fault


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> Array:  # noqa: N802
    """The pixels of a PIL image; see :func:`read_image`."""
    _refuse_unknown(format)
    if format is None:
        return np.asarray(image)
    pixels: Array = np.asarray(image.convert(_MODES[format]))
    if format == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if format == "BGR" else pixels


def convert_image_to_rgb(image: Array | Tensor, format: str) -> Array:
    """Convert an image of this format to RGB [H, W, 3]; BGR keeps its dtype, other formats become uint8."""
    _refuse_unknown(format)
    pixels = image.cpu().numpy() if isinstance(image, Tensor) else image
    if format == "BGR":
        return pixels[:, :, [2, 1, 0]]
    return np.broadcast_to(pixels.astype(np.uint8), (*pixels.shape[:2], 3))


def check_image_size(dataset_dict: dict[str, Any], image: Array) -> None:
    """Check ``width`` and ``height`` of an image's dict, or set them."""
    height, width = image.shape[:2]
    expected = (dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height))
    if expected != (width, height):
        raise SizeMismatchError(
            f"the image {dataset_dict.get('file_name', '')} has (width, height) {(width, height)}, but its annotation "
            f"says {expected}: correct the annotation"
        )


def transform_instance_annotations(
    annotation: dict[str, Any], transforms: Any, image_size: tuple[int, int]
) -> dict[str, Any]:
    """Transform the box and the segmentation of one instance, in place, by a transform or a list of them.

    The box becomes XYXY and is clipped to ``image_size``, the (height, width) after the transform. Polygons become
    arrays; an RLE becomes a mask [H, W].
    """
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(transforms)
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    height, width = image_size
    box = transforms.apply_box(np.array([box]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        corners = transforms.apply_polygons([np.asarray(polygon).reshape(-1, 2) for polygon in segmentation])
        annotation["segmentation"] = [each.reshape(-1) for each in corners]
    elif isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(coco.decode(segmentation))
        assert mask.shape[:2] == image_size, f"a mask of {mask.shape[:2]} in an image of {image_size}"
        annotation["segmentation"] = mask
    elif "segmentation" in annotation:
        raise ValueError(f"a segmentation must be a list of polygons or a dict (RLE), got a {type(segmentation)}")
    return annotation


def annotations_to_instances(
    annos: Sequence[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Instances with ``gt_boxes``, ``gt_classes`` and, if the first annotation has a segmentation, ``gt_masks``.

    ``mask_format`` is ``"polygon"``, or ``"bitmask"``, to which any segmentation is converted.
    """
    boxes = [BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS) for each in annos]
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(each["category_id"]) for each in annos], dtype=torch.int64)
    if len(annos) and "segmentation" in annos[0]:
        segmentations = [each["segmentation"] for each in annos]
        if mask_format == "polygon":
            target.gt_masks = _polygon_masks(segmentations)
        else:
            assert mask_format == "bitmask", f"INPUT.MASK_FORMAT must be 'polygon' or 'bitmask', not '{mask_format}'"
            target.gt_masks = BitMasks(np.stack([_bitmask(each, image_size) for each in segmentations]))
    return target


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Drop instances whose box is not wider and higher than the threshold, or whose mask is empty.

    ``return_mask`` also returns a boolean vector of the instances kept.
    """
    assert by_box or by_mask
    kept = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        kept &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty()
    return (instances[kept], kept) if return_mask else instances[kept]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raise if data sets that are used together have different metadata ``key``."""
    values = {name: getattr(MetadataCatalog.get(name), key) for name in dataset_names}
    first = next(iter(values), "")
    for name, value in values.items():
        if value != values[first]:
            logger.error(f"Metadata '{key}' of dataset '{name}' is {value}, of '{first}' {values[first]}")
            raise ValueError(f"Datasets have different metadata '{key}': '{name}' and '{first}'")


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The resizing, and for training the flipping, that ``INPUT`` configures."""
    given = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(given.MIN_SIZE_TEST, given.MAX_SIZE_TEST, "choice")]
    resize = T.ResizeShortestEdge(given.MIN_SIZE_TRAIN, given.MAX_SIZE_TRAIN, given.MIN_SIZE_TRAIN_SAMPLING)
    if given.RANDOM_FLIP == "none":
        return [resize]
    if given.RANDOM_FLIP not in ("horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP must be 'none', 'horizontal' or 'vertical', not '{given.RANDOM_FLIP}'")
    flip = T.RandomFlip(horizontal=given.RANDOM_FLIP == "horizontal", vertical=given.RANDOM_FLIP == "vertical")
    return [resize, flip]


def _refuse_unknown(format: str | None) -> None:
    if format is not None and format not in _MODES:
        raise ValueError(f"the format of an image (INPUT.FORMAT) must be one of {', '.join(_MODES)}, not '{format}'")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF does not make an image unreadable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _polygon_masks(segmentations: list[Any]) -> PolygonMasks:
    try:
        return PolygonMasks(segmentations)
    except ValueError as fault:
        raise ValueError(
            f"an annotation has no polygons ({fault}): with masks as RLE, set INPUT.MASK_FORMAT to 'bitmask'"
        ) from fault


def _bitmask(segmentation: Any, image_size: tuple[int, int]) -> Array:
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return coco.decode(segmentation)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return segmentation
    raise ValueError(f"a mask must be a list of polygons, a dict (RLE) or an array [H, W], got a {type(segmentation)}")
