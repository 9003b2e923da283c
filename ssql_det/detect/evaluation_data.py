"""Data sets and their images to calibrate with and to evaluate on; decoded once where memory allows.

A user's own data in COCO's format have a name that says where they lie, ``coco:IMAGES:FILE.json``, which may stand
wherever a config names a data set. So the config that a run saves finds its data again, in every command and process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ssql_det.core.distributed import rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.d2 import (
    CfgNode,
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.engine_errors import translate_errors

Batch = list[dict[str, Any]]

_logger = logging.getLogger(__name__)

_SHARE_OF_MEMORY = 0.25  # that decoded images may take of what is free, all processes together


class CachedLoader(Sequence[Batch]):
    """The batches of a loader, kept as long as they fit: later passes decode nothing that is kept.

    >>> images = CachedLoader(build_detection_test_loader(cfg, "toy_voc_2007_test"))
    >>> for batch in images: ...  # decoded
    >>> for batch in images: ...  # from memory
    """

    def __init__(self, loader: Any, most_bytes: int | None = None) -> None:
        self._loader = loader
        self._most_bytes = _free_memory() * _SHARE_OF_MEMORY / world_size() if most_bytes is None else most_bytes
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("batches come in their order; iterate")

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        decoded: list[Batch] = []
        left = self._most_bytes
        for batch in self._loader:
            left -= sum(each["image"].nbytes for each in batch)
            if left >= 0:
                decoded.append(batch)
            else:
                decoded.clear()
            yield batch
        if left >= 0:
            self._kept = decoded


def build_evaluation_loader(cfg: CfgNode, name: str) -> CachedLoader:
    """The images of a data set in the config's test form."""
    check_dataset(name)
    with translate_errors(f"the data set {name} cannot be read"):
        return CachedLoader(build_detection_test_loader(cfg, name))


class CalibrationImages(Sequence[Batch]):
    """Images to calibrate with, a batch each; one is decoded when it is first asked for.

    >>> chosen = select_calibration_images(cfg, Calibration(images=256))
    >>> take_rank_share(chosen)  # decodes those of this process
    """

    def __init__(self, records: Sequence[Any], mapper: Callable[[Any], Any]) -> None:
        self._records, self._mapper = records, mapper
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if place not in self._kept:
            record = self._records[place]
            with translate_errors(f"{record['file_name']} cannot be calibrated with"):
                self._kept[place] = [self._mapper(record)]
        return self._kept[place]


def take_rank_share(batches: Sequence[Batch]) -> Sequence[Batch]:
    """This process's of the batches that all ranks have."""
    return batches[rank() :: world_size()]


def merge_batches(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Batches of one image, eight at a time: norms are re-estimated from them, and one image has no variance."""
    for first in range(0, len(batches), 8):
        yield [image for batch in batches[first : first + 8] for image in batch]


def select_calibration_images(cfg: CfgNode, calibration: Calibration) -> CalibrationImages:
    """As many images of the training data in test form, chosen by the seed alone."""
    count, seed = calibration.images, calibration.seed
    if count < 1:
        raise UserError(f"calibration needs at least 1 image, got --calib-images {count}")
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name)
    with translate_errors("the images to calibrate with, those of DATASETS.TRAIN, cannot be read"):
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        if count > len(records):
            _logger.warning("there are only %d images to calibrate with, not %d", len(records), count)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
        return CalibrationImages([records[index] for index in order[:count]], DatasetMapper(cfg, is_train=False))


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
