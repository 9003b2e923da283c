"""From annotated images on a disk to a model's input.

================ ==================================================================================
catalog          data sets by name, and what is known of each
datasets         readers of COCO's and VOC's layouts; the built-in names, in ``$DETECTRON2_DATASETS``
transforms       augmentations and what they decide on
detection_utils  pixels from files, instances from annotations
dataset_mapper   one image: read, augmented, as tensors
samplers, common which images, in which order, by which process and worker
build            loaders
================ ==================================================================================
"""

from . import datasets, samplers, transforms
from .build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper

__all__ = [
    "DatasetCatalog",
    "DatasetFromList",
    "DatasetMapper",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "ToIterableDataset",
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "datasets",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "samplers",
    "transforms",
]
