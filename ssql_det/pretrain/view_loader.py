"""Batches of views in an order that is a function of the seed: any run finds its place in it again.

Which images make up batch ``n``, and every random choice of each view, follow from the seed and the position alone, not
from the state of a generator, from how many workers decode or from how many processes share a batch.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssql_det.core.distributed import ignore_interrupts
from ssql_det.core.errors import UserError, printable
from ssql_det.core.rng import derive_seed, seeded_rng
from ssql_det.pretrain.data import ImageDataset

T = TypeVar("T")

_MOST_SUBSTITUTES = 100
_logger = logging.getLogger(__name__)

_Place = tuple[int, int]  # a position in the stream, and the index of the image that stands there


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch: the same N images in each view.

    >>> first, second = batch.views  # uint8 [N, 3, S, S] each
    >>> draw_random_numbers(seed, batch.positions, 0, count)  # further choices that follow from the place
    """

    views: tuple[Tensor, ...]
    positions: tuple[int, ...]  # in the whole stream, of all processes
    bad: tuple[str, ...]  # files that could not be read; the images after them stand in


class BadImageCounter:
    """Names each bad image once, counts all of them, and ends a run that meets more than ``most``.

    >>> tolerance = BadImageCounter(most=10)
    >>> for batch in batches:
    ...     tolerance.take(batch)
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.files: set[str] = set()

    def take(self, batch: Batch) -> None:
        for file in batch.bad:
            if file in self.files:
                continue
            self.files.add(file)
            count = f"{len(self.files)} so far"
            _logger.warning("%s cannot be read; the next image stands in (%s)", printable(file), count)
            if len(self.files) > self.most:
                limit = f"DATA.MOST_BAD_IMAGES allows {self.most}"
                raise UserError(f"{file} cannot be read ({count}) and {limit}; mend or remove such files, or raise it")


def steps_per_epoch(images: int, size: int) -> int:
    """Whole batches; what is left over is another part of the images in each epoch.

    >>> steps_per_epoch(50000, 256)
    195
    """
    return images // size


def build_view_loader(
    images: ImageDataset,
    frame: Callable[[Image], Tensor],
    size: int,
    seed: int,
    first: int = 0,
    views: int = 2,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Batches from number ``first`` on, without end: of ``size`` images together, shared by ``world`` processes.

    ``frame`` makes a view, uint8 [3, S, S], drawing from the global generators, which are then as they were.

    >>> batches = build_view_loader(images, build_augmentation("cifar").image_transform, size=256, seed=0, first=step)
    >>> next(batches).views[0].shape
    torch.Size([256, 3, 32, 32])
    """
    if size < 1 or size % world:
        raise UserError(f"a batch of {size} cannot be shared by {world} processes; make it a multiple, 1 or more each")
    if len(images) < size:
        raise UserError(f"{images.name} has {len(images)} images, too few for a batch of {size}; make that smaller")
    samples, places = _Samples(images, frame, seed, views), _places(len(images), size, seed, first, rank, world)
    return loaded(samples, places, _together, seed, workers)


def loaded(
    samples: Dataset[T | str], places: Iterable[Any], together: Callable[[list[T]], T], seed: int, workers: int
) -> Iterator[T]:
    """What stands at each list of places, put together. A sample may be a sentence instead, which says why there is
    none: a worker's exception would come with its whole traceback."""
    loader = DataLoader(
        samples,
        batch_sampler=places,
        num_workers=workers,
        collate_fn=partial(_whole, together),
        generator=torch.Generator().manual_seed(derive_seed(seed)),  # else it draws from the global one, once a run
        worker_init_fn=ignore_interrupts,
    )
    return map(_require, loader)


def _places(images: int, size: int, seed: int, first: int, rank: int, world: int) -> Iterator[list[_Place]]:
    """The process's part of each batch; no epoch before that of the first batch is gone through."""
    steps, share = steps_per_epoch(images, size), size // world
    for epoch in itertools.count(first // steps):
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        order = torch.randperm(images, generator=generator)
        for batch in range(max(first, epoch * steps), (epoch + 1) * steps):
            start = batch * size + rank * share
            within = start - epoch * steps * size
            yield list(zip(range(start, start + share), order[within : within + share].tolist(), strict=True))


class _Samples(Dataset[Batch | str]):
    """Batches of one, or why there is none."""

    def __init__(self, images: ImageDataset, frame: Callable[[Image], Tensor], seed: int, views: int) -> None:
        self._images, self._frame, self._seed, self._views = images, frame, seed, views

    def __getitem__(self, place: _Place) -> Batch | str:
        position, index = place
        bad: list[str] = []
        reason = ""
        for offset in range(min(_MOST_SUBSTITUTES, len(self._images))):
            there = (index + offset) % len(self._images)
            try:
                image = self._images[there]
            except Exception as failure:  # a decoder can fail in any way
                bad.append(self._images.file(there))
                reason = reason or _said(failure)
                continue
            try:
                views = tuple(self._view(image, position, view) for view in range(self._views))
            except Exception as failure:  # not the file's fault, so nothing stands in for it
                return f"no view can be made of {self._images.file(there)}: {_said(failure)}"
            return Batch(views, (position,), tuple(bad))
        return f"{len(bad)} images in a row cannot be read, from {bad[0]} on ({reason}); mend them or name others"

    def _view(self, image: Image, position: int, view: int) -> Tensor:
        with seeded_rng(self._seed, position, view):
            return self._frame(image)[None]


def _said(failure: Exception) -> str:
    return " ".join(f"{type(failure).__name__}: {failure}".split())


def _together(batches: list[Batch]) -> Batch:
    views = tuple(map(torch.cat, zip(*(batch.views for batch in batches), strict=True)))
    positions = tuple(position for batch in batches for position in batch.positions)
    return Batch(views, positions, tuple(dict.fromkeys(file for batch in batches for file in batch.bad)))


def _whole(together: Callable[[list[T]], T], samples: list[T | str]) -> T | str:
    refusals = [sample for sample in samples if isinstance(sample, str)]
    return refusals[0] if refusals else together([sample for sample in samples if not isinstance(sample, str)])


def _require(sample: T | str) -> T:
    if isinstance(sample, str):
        raise UserError(sample)
    return sample
