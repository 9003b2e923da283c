"""Run a detector on a user's images at several bit-widths, draw the detections and write them in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from ssql_det.checkdata.draw import Canvas, draw_annotations
from ssql_det.checkdata.findings import AnnotatedImage
from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.d2 import CfgNode, MetadataCatalog, ResizeShortestEdge, read_image
from ssql_det.detect.datasets import is_custom, register_custom_dataset
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation import fast_inference
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.quantized_evaluation import NormBatches, evaluate_detector_at
from ssql_det.quant import Bits, Quantization

Detections = list[dict[str, Any]]  # of one image, as in COCO's results, but category_id is the class index; no image_id

_CAPTION_HEIGHT = 26  # pixels of the white bar above an image, in which the bit-width is written
_ENLARGED_SIDE = 320  # pixels: a small image is enlarged by a whole factor, its longer side to this length at most
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(paths: Sequence[str]) -> list[Path]:
    """The image files that ``paths`` name, in that order; a folder stands for its image files, sorted by name."""
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images += sorted(
                file for file in path.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
            )
        elif path.is_file():
            images.append(path)
        else:
            raise UserError(
                f"there is no image {path}; name image files, or folders of {', '.join(sorted(_IMAGE_SUFFIXES))}"
            )
    if not images:
        raise UserError(
            f"there are no images in {', '.join(paths)}; supported are {', '.join(sorted(_IMAGE_SUFFIXES))}"
        )
    duplicates = [path for path in images if sum(path.stem == other.stem for other in images) > 1]
    if duplicates:
        raise UserError(
            f"two images are called {duplicates[0].stem}, so both outputs would be {duplicates[0].stem}.png; "
            "predict them in separate commands"
        )
    return images


def check_output_paths(output_folder: Path, images: Sequence[Path]) -> None:
    """Raise a UserError if an output picture would overwrite one of the input images."""
    inputs = {image.resolve() for image in images}
    for image in images:
        output = output_folder / f"{image.stem}.png"
        if output.resolve() in inputs:
            raise UserError(f"the output {output} would overwrite an input image; choose another --out")


def load_image(cfg: CfgNode, path: Path) -> Batch:
    """Load an image as a batch of one, with the config's resizing for tests and its channel order."""
    with translate_errors(f"{path} cannot be read"):
        image = read_image(str(path), cfg.INPUT.FORMAT)
        height, width = image.shape[:2]
        resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        resized = resize.get_transform(image).apply_image(image)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return [{"image": tensor, "height": height, "width": width}]


def detect_at_bit_widths(
    cfg: CfgNode,
    quantization: Quantization,
    images: Sequence[Path],
    bit_widths: Iterable[Bits],
    min_score: float,
    calibration_batches: Sequence[Batch] = (),
) -> dict[Bits, list[Detections]]:
    """Detections by bit-width, for each image those with scores of at least ``min_score``.

    ``calibration_batches`` are used only if norms are computed for a bit-width.
    """
    model = quantization.model.eval()

    def detect(bits: Bits) -> list[Detections]:
        inference_context = fast_inference(model) if cfg.SSQL_DET.FAST_EVALUATION else nullcontext()
        with inference_context, torch.no_grad():
            outputs = (model(load_image(cfg, path))[0]["instances"] for path in track(images, f"detecting at {bits}"))
            return [list(_convert_to_coco(instances, min_score)) for instances in outputs]

    norm_batches = NormBatches(model, calibration_batches)
    return {
        bits: evaluate_detector_at(quantization, bits, partial(detect, bits), None, norm_batches) for bits in bit_widths
    }


def save_predictions(
    output_folder: Path, cfg: CfgNode, images: Sequence[Path], detections_by_bits: Mapping[Bits, list[Detections]]
) -> None:
    """Write ``IMAGE.png`` per image, bit-widths side by side, and ``detections_BITS.json`` per bit-width, in the format
    of COCO's annotation files, with a score per annotation."""
    classes, category_ids = get_class_names(cfg), get_category_ids(cfg)
    for index, path in enumerate(images):
        panels = [
            _draw_panel(path, str(bits), detections[index], classes) for bits, detections in detections_by_bits.items()
        ]
        with atomic_write(output_folder / f"{path.stem}.png") as file:
            file.write(cv2.imencode(".png", np.hstack(panels))[1].tobytes())
    for bits, detections in detections_by_bits.items():
        image_entries = [{"id": image_id, "file_name": path.name} for image_id, path in enumerate(images, start=1)]
        annotations = [
            {"image_id": image_id, **detection, "category_id": category_ids[detection["category_id"]]}
            for image_id, image_detections in enumerate(detections, start=1)
            for detection in image_detections
        ]
        annotations = [{"id": annotation_id, **each} for annotation_id, each in enumerate(annotations, start=1)]
        categories = [{"id": category_ids[index], "name": name} for index, name in enumerate(classes)]
        content = {"images": image_entries, "categories": categories, "annotations": annotations}
        with atomic_write(output_folder / f"detections_{bits}.json", "w") as file:
            json.dump(content, file)


def get_class_names(cfg: CfgNode) -> list[str]:
    """The names of the detector's classes, from the config's data sets; class indices if they are unknown."""
    names = _find_metadata(cfg, "thing_classes")
    return [str(index) for index in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)] if names is None else list(names)


def get_category_ids(cfg: CfgNode) -> list[int]:
    """The category id of each class in the data sets, such as COCO's 1 to 90; class indices if they are unknown."""
    index_by_id = _find_metadata(cfg, "thing_dataset_id_to_contiguous_id")
    if index_by_id is None:
        return list(range(cfg.MODEL.ROI_HEADS.NUM_CLASSES))
    return sorted(index_by_id, key=index_by_id.__getitem__)


def _find_metadata(cfg: CfgNode, attribute: str) -> Any:
    """The attribute in the engine's metadata of the first data set with as many classes as the detector, or None."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if is_custom(name):
            register_custom_dataset(name)
        value = getattr(MetadataCatalog.get(name), attribute, None)
        if value is not None and len(value) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return value
    return None


def _convert_to_coco(instances: Any, min_score: float) -> Iterator[dict[str, Any]]:
    instances = instances.to("cpu")
    for index in (instances.scores >= min_score).nonzero().flatten().tolist():
        x0, y0, x1, y1 = instances.pred_boxes.tensor[index].tolist()
        detection = {
            "category_id": int(instances.pred_classes[index]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(instances.scores[index]),
        }
        if instances.has("pred_masks"):
            rle = coco_mask.encode(np.asfortranarray(instances.pred_masks[index].numpy().astype(np.uint8)))
            detection["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        yield detection


def _draw_panel(path: Path, caption: str, detections: Detections, classes: Sequence[str]) -> Canvas:
    """Draw the detections on their image, enlarged if it is small, and a caption above it."""
    boxes_xywh = (detection["bbox"] for detection in detections)
    boxes = tuple((x, y, x + width, y + height) for x, y, width, height in boxes_xywh)
    labels = tuple(f"{classes[detection['category_id']]} {detection['score']:.2f}" for detection in detections)
    masks = tuple(detection.get("segmentation") for detection in detections)
    canvas = draw_annotations(AnnotatedImage(path, None, boxes, labels, masks), _ENLARGED_SIDE)
    framed = cv2.copyMakeBorder(
        canvas, top=_CAPTION_HEIGHT, bottom=4, left=2, right=2, borderType=cv2.BORDER_CONSTANT, value=_WHITE
    )
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(framed, caption, (6, 18), font, fontScale=0.6, color=_BLACK, thickness=1, lineType=cv2.LINE_AA)
    return np.asarray(framed, np.uint8)
