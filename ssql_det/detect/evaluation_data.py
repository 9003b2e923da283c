"""Calibration images, kept in memory, and evaluation images, kept in memory after the first pass if they all fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ssql_det.core.distributed import rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.d2 import CfgNode, DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_checks import check_evaluation_dataset

Batch = list[dict[str, Any]]  # input of the engine (Detectron2 or its stand-in): a dict for each image

_MEMORY_FRACTION = 0.25  # of the free memory: the limit for the decoded images of a loader, all processes together
_NORM_BATCH_SIZE = 8  # images per batch when norm statistics are re-estimated
_logger = logging.getLogger(__name__)


class CachedLoader(Sequence[Batch]):
    """A data loader that keeps its batches after the first pass, if their images fit in ``max_bytes``.

    By default ``max_bytes`` is this process's part of ``_MEMORY_FRACTION`` of the free memory.

    >>> batches = CachedLoader([[{"image": images[0]}], [{"image": images[1]}]])
    >>> [len(batch) for batch in batches], len(batches)
    ([1, 1], 2)
    """

    def __init__(self, loader: Any, max_bytes: int | None = None) -> None:
        self._loader = loader
        self._max_bytes = _free_memory() * _MEMORY_FRACTION / world_size() if max_bytes is None else max_bytes
        self._cache: list[Batch] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("batches are read in order; iterate over the loader")

    def __iter__(self) -> Iterator[Batch]:
        if self._cache:
            yield from self._cache
            return
        cache: list[Batch] = []
        bytes_left = self._max_bytes
        for batch in self._read():
            bytes_left -= sum(sample["image"].nbytes for sample in batch)
            if bytes_left >= 0:
                cache.append(batch)
            else:
                cache.clear()
            yield batch
        if bytes_left >= 0:
            self._cache = cache

    def _read(self) -> Iterator[Batch]:
        """Yield the batches. Errors of reading one are translated, but not errors of the caller while it uses one."""
        with translate_errors("the test images cannot be read"):
            batches = iter(self._loader)
        while True:
            with translate_errors("a test image cannot be read"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch


def build_evaluation_loader(cfg: CfgNode, name: str) -> CachedLoader:
    """Check a data set, and build a loader of this rank's share of its images, with the config's test transform."""
    check_dataset(name)
    with translate_errors(f"the data set {name} cannot be read"):
        loader = build_detection_test_loader(cfg, name)
    check_evaluation_dataset(cfg, name)
    return CachedLoader(loader)


class CalibrationImages(Sequence[Batch]):
    """Calibration images, one per batch; each is decoded when it is first used, then kept.

    >>> batches = CalibrationImages([{"file_name": "a.png"}], lambda dataset_dict: {"image": images[0], **dataset_dict})
    >>> batches[0][0]["file_name"]
    'a.png'
    """

    def __init__(self, dataset_dicts: Sequence[Any], mapper: Callable[[Any], Any]) -> None:
        self._dataset_dicts, self._mapper = dataset_dicts, mapper
        self._cache: dict[int, Batch] = {}

    @property
    def dataset_dicts(self) -> Sequence[Any]:
        """The images as the engine's catalog lists them, with their objects."""
        return self._dataset_dicts

    def __len__(self) -> int:
        return len(self._dataset_dicts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if index not in self._cache:
            dataset_dict = self._dataset_dicts[index]
            with translate_errors(f"the calibration image {dataset_dict['file_name']} cannot be read"):
                self._cache[index] = [self._mapper(dataset_dict)]
        return self._cache[index]


@dataclass(frozen=True)
class RoleImages:
    """Training images for each role that a calibration names; no image has two roles."""

    calibration: CalibrationImages  # for ranges and norms
    reconstruction: CalibrationImages  # on which repairs are trained
    selection: CalibrationImages  # on which repairs are compared


def select_calibration_images(cfg: CfgNode, calibration: Calibration) -> CalibrationImages:
    """Random training images with the config's test transform, chosen by the calibration's seed alone."""
    return select_role_images(cfg, calibration).calibration


def select_role_images(cfg: CfgNode, calibration: Calibration) -> RoleImages:
    """Random training images with the config's test transform, for each role those that follow the former role's.

    Their order depends on the calibration's seed alone, so the images for calibration are the same whatever the other
    roles take. Too few images are an error, but if there are no other roles, calibration takes fewer with a warning.
    """
    count, counts = calibration.images, (calibration.reconstruction_images, calibration.selection_images)
    if count < 1:
        raise UserError(f"calibration needs at least 1 image, got --calib-images {count}")
    if min(counts) < 0:
        raise UserError(f"the images for reconstruction and selection must be 0 or more, got {counts[0]}, {counts[1]}")
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name)
    with translate_errors("the data sets in DATASETS.TRAIN cannot be read"):
        dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        mapper = DatasetMapper(cfg, is_train=False)
    order = torch.randperm(len(dataset_dicts), generator=torch.Generator().manual_seed(calibration.seed)).tolist()
    shuffled = [dataset_dicts[index] for index in order]
    # A data set that is named twice has each image twice, which must not get two roles.
    taken = {each["file_name"] for each in shuffled[:count]}
    others = list({each["file_name"]: each for each in shuffled if each["file_name"] not in taken}.values())
    if any(counts) and (count > len(shuffled) or sum(counts) > len(others)):
        raise UserError(
            f"DATASETS.TRAIN has {len(taken) + len(others)} images, but calibration needs {count}, reconstruction "
            f"{counts[0]} and selection {counts[1]} different ones; use fewer for a role, or name more training data"
        )
    if count > len(shuffled):
        _logger.warning("calibrating with %d images, not %d: DATASETS.TRAIN has no more", len(shuffled), count)
    parts = (shuffled[:count], others[: counts[0]], others[counts[0] : sum(counts)])
    return RoleImages(*(CalibrationImages(part, mapper) for part in parts))


def take_rank_share(batches: Sequence[Batch]) -> Sequence[Batch]:
    """This rank's share of ``batches``, which are the same list on every rank.

    >>> take_rank_share([[], []])  # one process
    [[], []]
    """
    return batches[rank() :: world_size()]


def merge_batches(batches: Sequence[Batch], size: int = _NORM_BATCH_SIZE) -> Iterator[Batch]:
    """Merge batches of one image into batches of up to ``size``: norm statistics need the variance between images."""
    for start in range(0, len(batches), size):
        yield [image for batch in batches[start : start + size] for image in batch]


def _free_memory() -> int:
    """Free memory of this machine in bytes."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
