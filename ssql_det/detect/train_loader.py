"""The loader of training images, in an order that depends on the seed alone.

The images of batch ``n`` and their random augmentations depend on the seed and ``n``, not on the number of workers or
processes. So a resumed run gets the same batches as an uninterrupted run.
"""

from __future__ import annotations

import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ssql_det.core.distributed import rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.processes import ignore_interrupts
from ssql_det.core.rng import seeded_rng
from ssql_det.d2 import CfgNode, DatasetMapper, get_detection_dataset_dicts
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_data import Batch

BAD_IMAGE_POLICIES = ("stop", "skip")  # values of SSQL_DET.ON_BAD_IMAGE
BAD_IMAGES_KEY = "bad_images"  # key of a sample: files that were skipped before its image could be read
ERROR_KEY, TRACEBACK_KEY = "error", "traceback"  # keys of a sample whose image could not be read
_MAX_SKIPPED = 100  # after this many unreadable images in a row training stops
_logger = logging.getLogger(__name__)

DatasetDict = dict[str, Any]  # an image in Detectron2's dataset format
SampleIndex = tuple[int, int]  # a sample's position in the order of training, and the index of its image


class AspectRatioBatchSampler(Sampler[list[SampleIndex]]):
    """Infinite sampler of batches of either wide or tall images, so that little of a batch is padding.

    ``is_wide`` has an entry per image; ``batch_size`` counts the images of all ranks. It skips the batches before
    ``first_batch``, and yields the share of ``rank`` in each batch.

    >>> batches = AspectRatioBatchSampler([True, True, False, False], batch_size=2, seed=0)
    >>> next(iter(batches))
    [(0, 0), (1, 1)]
    """

    def __init__(
        self,
        is_wide: Sequence[bool],
        batch_size: int,
        seed: int,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._is_wide, self._batch_size, self._seed, self._first_batch = is_wide, batch_size, seed, first_batch
        self._rank_share = slice(rank, None, world_size)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        return (batch[self._rank_share] for batch in itertools.islice(self._batches(), self._first_batch, None))

    def _batches(self) -> Iterator[list[SampleIndex]]:
        buckets: dict[bool, list[SampleIndex]] = {True: [], False: []}
        for position, index in enumerate(self._shuffled_indices()):
            bucket = buckets[self._is_wide[index]]
            bucket.append((position, index))
            if len(bucket) == self._batch_size:
                yield list(bucket)
                bucket.clear()

    def _shuffled_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield from torch.randperm(len(self._is_wide), generator=generator).tolist()


class SeededDataset(Dataset[DatasetDict]):
    """Loads and augments images; the augmentation of a sample is seeded by its position in the order of training.

    If an image cannot be read, ``on_bad_image="skip"`` takes the next one instead. With ``"stop"``, or after
    ``_MAX_SKIPPED`` such images in a row, the sample has the error under ``ERROR_KEY``, because DataLoader changes the
    type and message of exceptions in worker processes.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[DatasetDict],
        mapper: Callable[[DatasetDict], Any],
        seed: int,
        on_bad_image: str = "stop",
    ) -> None:
        self._dataset_dicts, self._mapper = dataset_dicts, mapper
        self._seed, self._on_bad_image = seed, on_bad_image

    def __getitem__(self, index: SampleIndex) -> DatasetDict:
        position, first_index = index
        skipped: list[str] = []
        for offset in range(_MAX_SKIPPED):
            dataset_dict = self._dataset_dicts[(first_index + offset) % len(self._dataset_dicts)]
            try:
                with seeded_rng(self._seed, position):
                    sample: DatasetDict = self._mapper(dataset_dict)
            except Exception as failure:  # a damaged file can make a decoder fail in any way
                file = dataset_dict.get("file_name", "?")
                if self._on_bad_image == "stop":
                    reason = " ".join(str(failure).split())
                    error = f"cannot train on {file}: {reason}; repair or remove it, or set SSQL_DET.ON_BAD_IMAGE skip"
                    return {ERROR_KEY: error, TRACEBACK_KEY: traceback.format_exc()}
                skipped.append(file)
                last_traceback = traceback.format_exc()
            else:
                return {**sample, BAD_IMAGES_KEY: skipped} if skipped else sample
        error = (
            f"{_MAX_SKIPPED} images in a row cannot be read, from {skipped[0]} on; find them with ssql-det check-data"
        )
        return {ERROR_KEY: error, TRACEBACK_KEY: last_traceback}

    def __len__(self) -> int:
        return len(self._dataset_dicts)


class BadImageLog:
    """Logs each image that this rank skipped once, and counts them."""

    def __init__(self) -> None:
        self.names: set[str] = set()  # files of the skipped images

    def log_skipped_images(self, batch: Batch) -> None:
        """Remove the names of skipped images from a batch's samples, and log each name once."""
        for sample in batch:
            for name in sample.pop(BAD_IMAGES_KEY, ()):
                if name not in self.names:
                    self.names.add(name)
                    _logger.warning("%s cannot be read and is skipped (%d so far)", name, len(self.names))


def get_micro_batch_size(cfg: CfgNode) -> int:
    """The images of a micro-batch on all ranks together: ``IMS_PER_BATCH`` divided by ``MICRO_BATCHES``."""
    batch_size, micro_batches, ranks = cfg.SOLVER.IMS_PER_BATCH, cfg.SSQL_DET.MICRO_BATCHES, world_size()
    if batch_size % micro_batches:
        raise UserError(f"SSQL_DET.MICRO_BATCHES must divide SOLVER.IMS_PER_BATCH ({batch_size}), got {micro_batches}")
    if batch_size // micro_batches % ranks:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH must be a multiple of {micro_batches * ranks} (SSQL_DET.MICRO_BATCHES times the "
            f"number of processes), got {batch_size}"
        )
    return int(batch_size // micro_batches)


def build_train_loader(cfg: CfgNode, seed: int, first_micro_batch: int = 0) -> Iterator[Batch]:
    """Infinite iterator over this rank's share of each micro-batch, with the config's training augmentation.

    It begins with the micro-batch of index ``first_micro_batch``, counted from the beginning of training.
    """
    size = get_micro_batch_size(cfg)
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} is not supported; set it to TrainingSampler"
        )
    policy = cfg.SSQL_DET.ON_BAD_IMAGE
    if policy not in BAD_IMAGE_POLICIES:
        raise UserError(f"SSQL_DET.ON_BAD_IMAGE must be {' or '.join(BAD_IMAGE_POLICIES)}, got {policy!r}")
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name)
    with translate_errors("the data sets in DATASETS.TRAIN cannot be read"):
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=filter_empty)
        mapper = DatasetMapper(cfg, is_train=True)
        is_grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        # Without grouping all images are called wide, so that they share one bucket.
        is_wide = [not is_grouped or image["width"] > image["height"] for image in dataset_dicts]
    if cfg.MODEL.MASK_ON:
        _check_masks(dataset_dicts)
    loader = DataLoader(
        SeededDataset(dataset_dicts, mapper, seed, policy),
        batch_sampler=AspectRatioBatchSampler(
            is_wide, size, seed, first_batch=first_micro_batch, rank=rank(), world_size=world_size()
        ),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        generator=torch.Generator().manual_seed(seed),  # otherwise DataLoader draws from the global generator
        worker_init_fn=ignore_interrupts,
    )
    return map(_raise_read_errors, loader)


def _check_masks(dataset_dicts: Sequence[DatasetDict]) -> None:
    for image in dataset_dicts:
        if any("segmentation" not in annotation for annotation in image["annotations"]):
            raise UserError(
                f"{image['file_name']} has an object without a mask; to train on boxes only, set MODEL.MASK_ON False"
            )


def _raise_read_errors(batch: Batch) -> Batch:
    for sample in batch:
        if ERROR_KEY in sample:
            raise UserError(sample[ERROR_KEY]) from OSError(f"reading the image failed:\n{sample[TRACEBACK_KEY]}")
    return batch
