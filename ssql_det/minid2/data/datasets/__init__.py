"""Readers of COCO's and VOC's layouts. Importing this package registers the built-in data sets."""

from . import builtin
from .coco import load_coco_json, register_coco_instances
from .pascal_voc import load_voc_instances, register_pascal_voc

__all__ = ["builtin", "load_coco_json", "load_voc_instances", "register_coco_instances", "register_pascal_voc"]
