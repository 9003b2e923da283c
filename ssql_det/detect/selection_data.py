"""The selection images, which are training images, as a data set that the engine's evaluators can read.

So AP on them is the AP that a sweep measures on the test set, by the same code: VOC's or COCO's, as the training data
are. The evaluators read annotation files, so the objects of these images are written into a temporary folder, in the
same format, and registered under a temporary name.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, DatasetMapper, MetadataCatalog, build_detection_test_loader
from ssql_det.detect.datasets import shorten_dataset_name
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_checks import COCO_TYPE, VOC_TYPE, check_evaluation_dataset
from ssql_det.detect.evaluation_data import CachedLoader, CalibrationImages

_SPLIT = "selection"


@contextmanager
def registering_selection(cfg: CfgNode, images: CalibrationImages) -> Iterator[tuple[str, CachedLoader]]:
    """Register the images, which are of ``DATASETS.TRAIN``; yield the name, and a loader of this rank's share.

    The annotations are checked as those of a test set. Each rank writes a folder of its own.
    """
    name = f"{len(images)} selection images of {'+'.join(map(shorten_dataset_name, cfg.DATASETS.TRAIN))}"
    sources = [MetadataCatalog.get(each) for each in cfg.DATASETS.TRAIN]
    kinds = {getattr(source, "evaluator_type", None) for source in sources}
    if len(kinds) != 1 or not kinds <= {COCO_TYPE, VOC_TYPE}:
        raise UserError(
            f"AP on training images needs data sets of one kind in DATASETS.TRAIN, {VOC_TYPE} or {COCO_TYPE}, but they "
            f"are of {', '.join(map(str, kinds))}; use --fast, which needs no objects"
        )
    (kind,) = kinds
    with tempfile.TemporaryDirectory() as folder:
        with translate_errors("the objects of the selection images cannot be read"):
            write = _write_coco if kind == COCO_TYPE else _write_voc
            dataset_dicts, metadata = write(Path(folder), images.dataset_dicts, sources)
        MetadataCatalog.get(name).set(evaluator_type=kind, thing_classes=list(sources[0].thing_classes), **metadata)
        try:
            try:
                check_evaluation_dataset(cfg, name)
            except UserError as mistake:
                raise UserError(f"of the selection images, {mistake}") from mistake
            loader = build_detection_test_loader(
                dataset_dicts, mapper=DatasetMapper(cfg, is_train=False), num_workers=cfg.DATALOADER.NUM_WORKERS
            )
            yield name, CachedLoader(loader)
        finally:
            MetadataCatalog.remove(name)


def _write_voc(folder: Path, images: Sequence[Any], sources: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Links to the annotations of the images, and a list of them. Images of several data sets may have one name."""
    annotations = folder / "Annotations"
    annotations.mkdir()
    counts = Counter(image["image_id"] for image in images)
    renamed = []
    for index, image in enumerate(images):
        name = image["image_id"]
        new_name = name if counts[name] == 1 else f"{name}_{index}"
        original = Path(image["file_name"]).parents[1] / "Annotations" / f"{name}.xml"  # as VOC's development kit
        os.symlink(original.resolve(), annotations / f"{new_name}.xml")
        renamed.append({**image, "image_id": new_name})
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / f"{_SPLIT}.txt").write_text("".join(f"{image['image_id']}\n" for image in renamed), "utf-8")
    return renamed, {"dirname": str(folder), "split": _SPLIT, "year": sources[0].year}


def _write_coco(folder: Path, images: Sequence[Any], sources: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """One annotation file of the images, with ids of their own."""
    entries: dict[str, tuple[Any, list[Any]]] = {}  # image and annotations by file name, as the engine joins it
    wanted, categories = {image["file_name"] for image in images}, None
    for source in sources:
        if not hasattr(source, "json_file"):
            raise UserError(f"{source.name} has no json_file, which COCO's metrics read; use --fast")
        document = json.loads(Path(source.json_file).read_text("utf-8"))
        categories = categories or document["categories"]
        annotations: defaultdict[Any, list[Any]] = defaultdict(list)
        for annotation in document.get("annotations", ()):
            annotations[annotation["image_id"]].append(annotation)
        for entry in document["images"]:
            path = os.path.join(source.image_root, entry["file_name"])
            if path in wanted:
                entries[path] = entry, annotations[entry["id"]]
    renamed: list[Any] = []
    written_images: list[Any] = []
    written_annotations: list[Any] = []
    for index, image in enumerate(images, start=1):
        entry, own = entries[image["file_name"]]
        renamed.append({**image, "image_id": index})
        written_images.append({**entry, "id": index})
        written_annotations += [{**each, "image_id": index} for each in own]
    document = {
        "images": written_images,
        "annotations": [{**each, "id": number} for number, each in enumerate(written_annotations, start=1)],
        "categories": categories,
    }
    file = folder / f"{_SPLIT}.json"
    file.write_text(json.dumps(document), "utf-8")
    ids = sources[0].thing_dataset_id_to_contiguous_id  # set when the images were listed
    return renamed, {"json_file": str(file), "thing_dataset_id_to_contiguous_id": dict(ids)}
