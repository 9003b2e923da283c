"""Data sets, transforms and loaders.

================ ==================================================================================
catalog          data sets and their metadata by name
datasets         readers of COCO's and VOC's layouts; the built-in data sets in ``$DETECTRON2_DATASETS``
transforms       augmentations and transforms
detection_utils  reading images, converting annotations
dataset_mapper   reads and augments one image
samplers, common the order of images; their distribution over processes and workers
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
