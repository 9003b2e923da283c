"""The loader of training images, in an order that depends on the seed alone.

The images of batch ``n`` and the random choices of their augmentation follow from the seed and from ``n``, not from the
number of workers or processes. So a resumed run trains on what the uninterrupted run would have trained on.
"""

from __future__ import annotations

import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ssql_det.core.config import check_minimums
from ssql_det.core.distributed import ignore_interrupts, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seeded_rng
from ssql_det.d2 import CfgNode, DatasetMapper, get_detection_dataset_dicts
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_data import Batch

BAD_IMAGE_POLICIES = ("stop", "skip")
BAD_IMAGES_KEY = "bad_images"  # of a sample: the files that were skipped for it
ERROR_KEY, TRACEBACK_KEY = "error", "traceback"  # of a sample that could not be read
_MAX_SKIPPED = 100  # images in a row
_logger = logging.getLogger(__name__)

Record = dict[str, Any]  # an image in Detectron2's dataset format
Index = tuple[int, int]  # a position in the training, and the index of the record that is trained on there


class AspectRatioBatchSampler(Sampler[list[Index]]):
    """Endless batches of either wide or tall images, so that little of a batch is padding.

    The batches begin with number ``first_batch``; of each batch the sampler yields the share of ``rank``.

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

    def __iter__(self) -> Iterator[list[Index]]:
        return (batch[self._rank_share] for batch in itertools.islice(self._batches(), self._first_batch, None))

    def _batches(self) -> Iterator[list[Index]]:
        buckets: dict[bool, list[Index]] = {True: [], False: []}
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


class SeededDataset(Dataset[Record]):
    """Maps records to samples; the random choices of a sample are seeded by its position.

    A sample of an image that cannot be read holds the error under ``ERROR_KEY``: an exception of a worker process
    would not arrive as it was raised.
    """

    def __init__(
        self, records: Sequence[Record], mapper: Callable[[Record], Any], seed: int, on_bad_image: str = "stop"
    ) -> None:
        self._records, self._mapper, self._seed, self._on_bad_image = records, mapper, seed, on_bad_image

    def __getitem__(self, index: Index) -> Record:
        position, first_record = index
        skipped: list[str] = []
        for offset in range(_MAX_SKIPPED):
            record = self._records[(first_record + offset) % len(self._records)]
            try:
                with seeded_rng(self._seed, position):
                    sample: Record = self._mapper(record)
            except Exception as failure:  # a damaged file can make a decoder fail in any way
                file = record.get("file_name", "?")
                if self._on_bad_image == "stop":
                    reason = " ".join(str(failure).split())
                    error = f"cannot train on {file}: {reason}; repair or remove it, or set SSQL_DET.ON_BAD_IMAGE skip"
                    return {ERROR_KEY: error, TRACEBACK_KEY: traceback.format_exc()}
                skipped.append(file)
                last_traceback = traceback.format_exc()
            else:
                return {**sample, BAD_IMAGES_KEY: skipped} if skipped else sample
        error = f"{_MAX_SKIPPED} images in a row cannot be read, from {skipped[0]} on; see ssql-det check-data"
        return {ERROR_KEY: error, TRACEBACK_KEY: last_traceback}

    def __len__(self) -> int:
        return len(self._records)


class BadImageLog:
    """Logs each skipped image once, and counts them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def log_skipped_images(self, batch: Batch) -> None:
        """Take note of the skipped images in the batch's samples."""
        for sample in batch:
            for name in sample.pop(BAD_IMAGES_KEY, ()):
                if name not in self.names:
                    self.names.add(name)
                    _logger.warning("%s cannot be read and is skipped (%d so far)", name, len(self.names))


def get_micro_batch_size(cfg: CfgNode) -> int:
    """Images of a forward pass, of all ranks together: a batch is trained in ``MICRO_BATCHES`` equal parts."""
    size, parts, world = cfg.SOLVER.IMS_PER_BATCH, cfg.SSQL_DET.MICRO_BATCHES, world_size()
    check_minimums(cfg, {"SOLVER.IMS_PER_BATCH": 1})
    if parts < 1 or size % parts:
        raise UserError(f"SSQL_DET.MICRO_BATCHES must divide SOLVER.IMS_PER_BATCH {size}, got {parts}")
    if size // parts % world:
        raise UserError(
            f"{world} processes cannot share {size // parts} images: make SOLVER.IMS_PER_BATCH {size} a multiple of "
            f"{parts * world}"
        )
    return int(size // parts)


def build_train_loader(cfg: CfgNode, seed: int, first_micro_batch: int = 0) -> Iterator[Batch]:
    """Infinite iterator over this rank's share of each micro-batch, with the config's training augmentation."""
    size = get_micro_batch_size(cfg)
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} is not supported; leave it TrainingSampler"
        )
    policy = cfg.SSQL_DET.ON_BAD_IMAGE
    if policy not in BAD_IMAGE_POLICIES:
        raise UserError(f"SSQL_DET.ON_BAD_IMAGE must be {' or '.join(BAD_IMAGE_POLICIES)}, got {policy!r}")
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name)
    with translate_errors("the training data, those of DATASETS.TRAIN, cannot be read"):
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        mapper = DatasetMapper(cfg, is_train=True)
        has_groups = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        is_wide = [not has_groups or record["width"] > record["height"] for record in records]
    if cfg.MODEL.MASK_ON:
        _check_masks(records)
    loader = DataLoader(
        SeededDataset(records, mapper, seed, policy),
        batch_sampler=AspectRatioBatchSampler(
            is_wide, size, seed, first_batch=first_micro_batch, rank=rank(), world_size=world_size()
        ),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        generator=torch.Generator().manual_seed(seed),  # otherwise it draws a number from the global one
        worker_init_fn=ignore_interrupts,
    )
    return map(_raise_read_errors, loader)


def _check_masks(records: Sequence[Record]) -> None:
    for record in records:
        if any("segmentation" not in each for each in record["annotations"]):
            raise UserError(
                f"{record['file_name']} has an object without a mask; for boxes alone set MODEL.MASK_ON False"
            )


def _raise_read_errors(batch: Batch) -> Batch:
    for sample in batch:
        if ERROR_KEY in sample:
            raise UserError(sample[ERROR_KEY]) from OSError(f"reading the image failed:\n{sample[TRACEBACK_KEY]}")
    return batch
