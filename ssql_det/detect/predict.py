"""Run a detector on a user's images at several bit-widths, draw the detections and write them in COCO's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssql_det.core.console import track
from ssql_det.d2 import BoxMode, CfgNode, DatasetCatalog, MetadataCatalog, ResizeShortestEdge, read_image
from ssql_det.detect.datasets import check_dataset, is_custom, register_custom_dataset
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation import fast_inference
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.predictions_page import PredictionsPage
from ssql_det.detect.quantized_evaluation import NormBatches, evaluate_detector_at
from ssql_det.images.drawing import draw_panel
from ssql_det.images.reading import read_rgb
from ssql_det.images.results import Detection, collect_detections, save_detections, save_picture
from ssql_det.quant import Bits, Quantization
from ssql_det.report.page_files import write_text
from ssql_det.report.render_html import render_html

PAGE_NAME = "index.html"
_ANNOTATED = "annotated"  # name of a panel
# The metadata of COCO and of VOC that name a data set's folder, and the subfolder of it that has the images.
_IMAGE_FOLDERS = {"image_root": (), "dirname": ("JPEGImages",)}


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
) -> dict[Bits, list[list[Detection]]]:
    """Detections by bit-width, for each image those with scores of at least ``min_score``.

    ``calibration_batches`` are used only if statistics of norms must be computed for a bit-width.
    """
    model = quantization.model.eval()

    def detect(bits: Bits) -> list[list[Detection]]:
        inference_context = fast_inference(model) if cfg.SSQL_DET.FAST_EVALUATION else nullcontext()
        with inference_context, torch.no_grad():
            outputs = (model(load_image(cfg, path))[0]["instances"] for path in track(images, f"detecting at {bits}"))
            return [_collect(instances, min_score) for instances in outputs]

    norm_batches = NormBatches(model, calibration_batches)
    return {
        bits: evaluate_detector_at(quantization, bits, partial(detect, bits), None, norm_batches) for bits in bit_widths
    }


def save_predictions(
    output_folder: Path, cfg: CfgNode, images: Sequence[Path], detections_by_bits: Mapping[Bits, list[list[Detection]]]
) -> None:
    """Write ``IMAGE.png`` per image, bit-widths side by side, ``detections_BITS.json`` per bit-width, in the format of
    COCO's annotation files, with a score per annotation, and the page ``index.html``.

    Images of ``DATASETS.TEST`` have a panel with their annotations. If full precision is among the bit-widths, the
    panels of the others mark what they lose and what they find in addition.
    """
    classes, category_ids, annotated = get_class_names(cfg), get_category_ids(cfg), find_annotations(cfg, images)
    page = PredictionsPage()
    for index, path in enumerate(images):
        pixels, float_detections = read_rgb(path), detections_by_bits.get(Bits.FP)
        objects = annotated.get(path.resolve())
        panels = {} if objects is None else {_ANNOTATED: draw_panel(pixels, objects, classes, _ANNOTATED, None, False)}
        for bits, detections in detections_by_bits.items():
            reference = None if bits == Bits.FP or float_detections is None else float_detections[index]
            panels[str(bits)] = draw_panel(pixels, detections[index], classes, str(bits), reference)
        save_picture(output_folder / f"{path.stem}.png", [*panels.values()], [*panels])
        page.add(path, panels)
    for bits, detections in detections_by_bits.items():
        save_detections(output_folder / f"detections_{bits}.json", images, detections, classes, category_ids)
    write_text(output_folder / PAGE_NAME, render_html(page.build(images, detections_by_bits)))


def find_annotations(cfg: CfgNode, images: Sequence[Path]) -> dict[Path, list[Detection]]:
    """The annotated objects of those images that are of ``DATASETS.TEST``, by resolved path, without their masks.

    A data set is read only if one of the images is in its folder.
    """
    paths, found = {image.resolve() for image in images}, dict[Path, list[Detection]]()
    folders = {path.parent for path in paths}
    for name in cfg.DATASETS.TEST:
        if is_custom(name):
            register_custom_dataset(name)
        metadata = MetadataCatalog.get(name).as_dict()
        roots = [Path(metadata[key], *below) for key, below in _IMAGE_FOLDERS.items() if key in metadata]
        if folders.isdisjoint(root.resolve() for root in roots):
            continue
        check_dataset(name)
        with translate_errors(f"the annotations of {name} cannot be read"):
            for record in DatasetCatalog.get(name):
                path = Path(record["file_name"]).resolve()
                if path in paths and "annotations" in record:
                    found[path] = _collect_annotations(record["annotations"])
    return found


def _collect_annotations(annotations: Sequence[Mapping[str, Any]]) -> list[Detection]:
    boxes = [BoxMode.convert(list(each["bbox"]), each["bbox_mode"], BoxMode.XYWH_ABS) for each in annotations]
    return [
        Detection(each["category_id"], (box[0], box[1], box[2], box[3]), 1.0)
        for each, box in zip(annotations, boxes, strict=True)
        if not each.get("iscrowd", 0)
    ]


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


def _collect(instances: Any, min_score: float) -> list[Detection]:
    instances = instances[instances.scores >= min_score].to("cpu")
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    boxes, scores, classes = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    return collect_detections(boxes.numpy(), scores.numpy(), classes.numpy(), masks)
