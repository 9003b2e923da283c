"""A detector on a user's own images at several bit-widths: pictures side by side, detections as COCO's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
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
from ssql_det.detect.evaluation_data import Batch, merge_batches
from ssql_det.detect.quantized_evaluation import run_detector
from ssql_det.quant import Bits, Quantization, evaluate_at_widths

Detections = list[dict[str, Any]]  # of one image, as in COCO's results: bbox [x, y, w, h], category_id, score, ...

_CAPTION = 26  # pixels above a picture
_ENLARGED_TO = 320  # a side of a small picture: several lie side by side
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_NAMES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files, and the images in folders, in the order of their names."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(each for each in path.iterdir() if each.suffix.lower() in _NAMES and each.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"there is no image {path}; give files, or folders of {', '.join(sorted(_NAMES))}")
    if not found:
        raise UserError(f"there are no images in {', '.join(paths)}; known are {', '.join(sorted(_NAMES))}")
    twice = [path for path in found if sum(path.stem == other.stem for other in found) > 1]
    if twice:
        raise UserError(f"two images are called {twice[0].stem}, and so would be their pictures; give them one by one")
    return found


def check_output_paths(out: Path, paths: Sequence[Path]) -> None:
    """Refuse to write a picture over an image that was given."""
    given = {path.resolve() for path in paths}
    for path in paths:
        if (out / f"{path.stem}.png").resolve() in given:
            raise UserError(f"the picture of {path} would replace an image of yours; choose another --out than {out}")


def prepared(cfg: CfgNode, path: Path) -> Batch:
    """One image as the config tests images: resized, in its channel order, with the size to scale back to."""
    with translate_errors(f"{path} cannot be read"):
        image = read_image(str(path), cfg.INPUT.FORMAT)
        height, width = image.shape[:2]
        resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        resized = resize.get_transform(image).apply_image(image)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return [{"image": tensor, "height": height, "width": width}]


def detect(
    cfg: CfgNode,
    quantization: Quantization,
    paths: Sequence[Path],
    widths: Iterable[Bits],
    least_score: float,
    batches: Sequence[Batch] = (),
) -> dict[Bits, list[Detections]]:
    """The detections of every image at every width, from one copy of weights.

    ``batches`` are the images of the calibration, where norms are re-estimated.
    """
    model = quantization.model.eval()

    def detections(bits: Bits) -> list[Detections]:
        faster = fast_inference(model) if cfg.SSQL_DET.FAST_EVALUATION else nullcontext()
        with faster, torch.no_grad():
            outputs = (model(prepared(cfg, path))[0]["instances"] for path in track(paths, f"detecting at {bits}"))
            return [list(_as_coco(instances, least_score)) for instances in outputs]

    return dict(
        evaluate_at_widths(quantization, widths, detections, None, [*merge_batches(batches)], run_detector)
    )  # for each width


def save(out: Path, cfg: CfgNode, paths: Sequence[Path], found: Mapping[Bits, list[Detections]]) -> None:
    """``out/<image>.png``, the widths side by side, and ``out/detections_<bits>.json`` in COCO's format."""
    classes, ids = class_names(cfg), category_ids(cfg)
    for index, path in enumerate(paths):
        panels = [_panel(path, str(bits), detections[index], classes) for bits, detections in found.items()]
        with atomic_write(out / f"{path.stem}.png") as file:
            file.write(cv2.imencode(".png", np.hstack(panels))[1].tobytes())
    for bits, detections in found.items():
        images = [{"id": number, "file_name": path.name} for number, path in enumerate(paths, start=1)]
        numbered = ((image, detection) for image, each in enumerate(detections, start=1) for detection in each)
        annotations = [
            {"id": number, "image_id": image, **detection, "category_id": ids[detection["category_id"]]}
            for number, (image, detection) in enumerate(numbered, start=1)
        ]
        categories = [{"id": ids[number], "name": name} for number, name in enumerate(classes)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        with atomic_write(out / f"detections_{bits}.json", "w") as file:
            json.dump(content, file)


def class_names(cfg: CfgNode) -> list[str]:
    """As the first data set of the config names them, else numbers."""
    known = _of_classes(cfg, "thing_classes")
    return [str(number) for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)] if known is None else list(known)


def category_ids(cfg: CfgNode) -> list[int]:
    """The data set's own numbers of its classes, as COCO's 1 to 90; else 0 and up."""
    contiguous = _of_classes(cfg, "thing_dataset_id_to_contiguous_id")
    if contiguous is None:
        return list(range(cfg.MODEL.ROI_HEADS.NUM_CLASSES))
    return sorted(contiguous, key=contiguous.__getitem__)


def _of_classes(cfg: CfgNode, attribute: str) -> Any:
    """What the first data set of the config that has as many classes says of them."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if is_custom(name):
            register_custom_dataset(name)
        known = getattr(MetadataCatalog.get(name), attribute, None)
        if known is not None and len(known) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return known
    return None


def _as_coco(instances: Any, least_score: float) -> Iterator[dict[str, Any]]:
    instances = instances.to("cpu")
    for index in (instances.scores >= least_score).nonzero().flatten().tolist():
        x0, y0, x1, y1 = instances.pred_boxes.tensor[index].tolist()
        detection = {
            "category_id": int(instances.pred_classes[index]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(instances.scores[index]),
        }
        if instances.has("pred_masks"):
            runs = coco_mask.encode(np.asfortranarray(instances.pred_masks[index].numpy().astype(np.uint8)))
            detection["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
        yield detection


def _panel(path: Path, caption: str, detections: Detections, classes: Sequence[str]) -> Canvas:
    """The image with what was detected in it, enlarged if it is small, and the bit-width above."""
    boxes = tuple((x, y, x + width, y + height) for x, y, width, height in (each["bbox"] for each in detections))
    labels = tuple(f"{classes[each['category_id']]} {each['score']:.2f}" for each in detections)
    masks = tuple(each.get("segmentation") for each in detections)
    canvas = draw_annotations(AnnotatedImage(path, None, boxes, labels, masks), _ENLARGED_TO)
    framed = cv2.copyMakeBorder(canvas, _CAPTION, 4, 2, 2, cv2.BORDER_CONSTANT, value=_WHITE)
    cv2.putText(framed, caption, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, _BLACK, 1, cv2.LINE_AA)
    return np.asarray(framed, np.uint8)
