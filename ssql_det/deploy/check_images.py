"""The images on which an exported file and the engine are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, DatasetMapper, get_detection_dataset_dicts
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.predict import load_image
from ssql_det.images.reading import find_images

T = TypeVar("T")


def load_check_images(cfg: CfgNode, count: int, folder: str | None = None) -> list[Batch]:
    """``count`` images, each as a batch of one: evenly spread over those of ``DATASETS.TEST``, or of a folder.

    All are read at once: an image that cannot be read is found before a file is written.
    """
    if count == 0:
        return []
    if folder is not None:
        return [[{**load_image(cfg, path)[0], "file_name": str(path)}] for path in spread(find_images([folder]), count)]
    try:
        return load_test_images(cfg, count)
    except UserError as failure:
        raise UserError(
            f"{failure}; to compare on other images, use --check-folder FOLDER; to write the file without a "
            "comparison, --check-images 0"
        ) from failure.__cause__


def load_test_images(cfg: CfgNode, count: int) -> list[Batch]:
    """``count`` images of ``DATASETS.TEST``, evenly spread, each as a batch of one."""
    check_test_data(cfg)
    with translate_errors("the data sets in DATASETS.TEST cannot be read"):
        dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
        mapper = DatasetMapper(cfg, is_train=False)
    batches = []
    for dataset_dict in spread(dataset_dicts, count):
        with translate_errors(f"the test image {dataset_dict['file_name']} cannot be read"):
            batches.append([mapper(dataset_dict)])
    return batches


def check_test_data(cfg: CfgNode) -> None:
    """Raise a ``UserError`` if ``DATASETS.TEST`` names no data set, or one that is not there."""
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name a data set")
    for name in cfg.DATASETS.TEST:
        check_dataset(name)


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items at even distances, in their order.

    >>> spread("abcdefgh", 3)
    ['a', 'c', 'f']
    """
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
