"""The training images in an order that is a function of the seed: any run finds its place in it again.

Which records make up batch ``n``, and every random choice of each image's augmentation, follow from the seed and the
position alone, not from the state of a generator, from how many workers decode or from how many processes share a
batch. So a resumed run sees what the run that was not stopped would have seen.
"""

from __future__ import annotations

import itertools
import logging
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
BAD_IMAGES = "bad_images"  # in a sample: the files that it stands in for
STOP = "stop"  # instead of a sample: why there is none; a worker's exception would come with its whole traceback
_MOST_SUBSTITUTES = 100
_logger = logging.getLogger(__name__)

Record = dict[str, Any]
Place = tuple[int, int]  # a position in the stream, and the record that stands there


class AspectRatioBatchSampler(Sampler[list[Place]]):
    """Endless batches of one orientation, wide or tall, so that little of a batch is padding; from batch ``first`` on.

    Of each batch this is the part of one of ``world`` ranks.

    >>> batches = AspectRatioBatchSampler([True, True, False, False], size=2, seed=0)
    >>> sorted(index for _, index in next(iter(batches)))
    [2, 3]
    """

    def __init__(
        self, is_wide: Sequence[bool], size: int, seed: int, first: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self._is_wide, self._size, self._seed, self._first = is_wide, size, seed, first
        self._own = slice(rank, None, world)

    def __iter__(self) -> Iterator[list[Place]]:
        return (batch[self._own] for batch in itertools.islice(self._batches(), self._first, None))

    def _batches(self) -> Iterator[list[Place]]:
        waiting: dict[bool, list[Place]] = {True: [], False: []}
        for position, index in enumerate(self._indices()):
            group = waiting[self._is_wide[index]]
            group.append((position, index))
            if len(group) == self._size:
                yield list(group)
                group.clear()

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield from torch.randperm(len(self._is_wide), generator=generator).tolist()


class SeededDataset(Dataset[Record]):
    """Records mapped to samples, each with random choices of its own position; a bad image stops or is stood in for."""

    def __init__(
        self, records: Sequence[Record], mapper: Callable[[Record], Any], seed: int, on_bad_image: str = "stop"
    ) -> None:
        self._records, self._mapper, self._seed, self._on_bad_image = records, mapper, seed, on_bad_image

    def __getitem__(self, place: Place) -> Record:
        position, index = place
        bad: list[str] = []
        for offset in range(_MOST_SUBSTITUTES):
            record = self._records[(index + offset) % len(self._records)]
            try:
                with seeded_rng(self._seed, position):
                    sample: Record = self._mapper(record)
            except Exception as failure:  # a decoder can fail in any way
                file = record.get("file_name", "?")
                if self._on_bad_image == "stop":
                    reason = " ".join(str(failure).split())
                    cure = "mend or remove it, or set SSQL_DET.ON_BAD_IMAGE skip"
                    return {STOP: f"cannot train on {file}: {reason}; {cure}"}
                bad.append(file)
            else:
                return {**sample, BAD_IMAGES: bad} if bad else sample
        return {STOP: f"{_MOST_SUBSTITUTES} images in a row cannot be read, from {bad[0]} on; see ssql-det check-data"}

    def __len__(self) -> int:
        return len(self._records)


class BadImageLog:
    """Names each bad image once and counts all."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def take_from(self, batch: Batch) -> None:
        for sample in batch:
            for name in sample.pop(BAD_IMAGES, ()):
                if name not in self.names:
                    self.names.add(name)
                    _logger.warning("%s cannot be read; the next image stands in (%d so far)", name, len(self.names))


def get_micro_batch_size(cfg: CfgNode) -> int:
    """How many images all ranks take at once: a batch may come in several parts, one after the other.

    Each part counts the same, as a rank's does.
    """
    size, parts, world = cfg.SOLVER.IMS_PER_BATCH, cfg.SSQL_DET.MICRO_BATCHES, world_size()
    check_minimums(cfg, {"SOLVER.IMS_PER_BATCH": 1})
    if parts < 1 or size % parts:
        raise UserError(f"SSQL_DET.MICRO_BATCHES must divide SOLVER.IMS_PER_BATCH {size}, got {parts}")
    if size // parts % world:
        share = f"{world} processes cannot share {size // parts} images"
        raise UserError(f"{share}: make SOLVER.IMS_PER_BATCH {size} a multiple of {parts * world}")
    return int(size // parts)


def build_train_loader(cfg: CfgNode, seed: int, first: int = 0) -> Iterator[Batch]:
    """This rank's share of every part of a batch from part ``first`` on, in the config's training form, without end."""
    size = get_micro_batch_size(cfg)
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} is not here; leave it TrainingSampler"
        )
    policy = cfg.SSQL_DET.ON_BAD_IMAGE
    if policy not in BAD_IMAGE_POLICIES:
        raise UserError(f"SSQL_DET.ON_BAD_IMAGE is {' or '.join(BAD_IMAGE_POLICIES)}, got {policy!r}")
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name)
    with translate_errors("the training data, those of DATASETS.TRAIN, cannot be read"):
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        mapper = DatasetMapper(cfg, is_train=True)
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        is_wide = [not grouped or record["width"] > record["height"] for record in records]
    if cfg.MODEL.MASK_ON:
        _require_masks(records)
    loader = DataLoader(
        SeededDataset(records, mapper, seed, policy),
        batch_sampler=AspectRatioBatchSampler(is_wide, size, seed, first, rank(), world_size()),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        generator=torch.Generator().manual_seed(seed),  # else it draws from the global one, once a run
        worker_init_fn=ignore_interrupts,
    )
    return map(_require_samples, loader)


def _require_masks(records: Sequence[Record]) -> None:
    for record in records:
        if any("segmentation" not in each for each in record["annotations"]):
            raise UserError(
                f"{record['file_name']} has an object without a mask; for boxes alone set MODEL.MASK_ON False"
            )


def _require_samples(batch: Batch) -> Batch:
    for sample in batch:
        if STOP in sample:
            raise UserError(sample[STOP])
    return batch
