"""The built-in data sets, in the folder ``$DETECTRON2_DATASETS`` (``./datasets`` if that is not set)."""

from __future__ import annotations

import os

from ..catalog import MetadataCatalog
from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .files import root_folder
from .pascal_voc import register_pascal_voc

_COCO = {  # name: (folder of images, name of the annotation file)
    "coco_2014_train": ("train2014", "train2014"),
    "coco_2014_val": ("val2014", "val2014"),
    "coco_2014_minival": ("val2014", "minival2014"),
    "coco_2014_valminusminival": ("val2014", "valminusminival2014"),
    "coco_2017_train": ("train2017", "train2017"),
    "coco_2017_val": ("val2017", "val2017"),
    "coco_2017_val_100": ("val2017", "val2017_100"),
}
_VOC = {2007: ("trainval", "train", "val", "test"), 2012: ("trainval", "train", "val")}


def register_all_coco(root: str) -> None:
    for name, (images, instances) in _COCO.items():
        register_coco_instances(
            name,
            _get_builtin_metadata("coco"),
            os.path.join(root, f"coco/annotations/instances_{instances}.json"),
            os.path.join(root, f"coco/{images}"),
        )


def register_all_pascal_voc(root: str) -> None:
    for year, splits in _VOC.items():
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


register_all_coco(root_folder())
register_all_pascal_voc(root_folder())
