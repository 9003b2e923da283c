"""A data loader for pretraining: batches of augmented views, in an order that depends on the seed alone.

Images are loaded and cropped by the loader's processes. The rest of the augmentation, of whole batches, overlaps with
the training step: on the CPU the loader's processes do it too; on a GPU, a stream of its own, one batch ahead.

The images of a batch depend only on the seed and the batch's index; the random augmentation of a view only on the seed,
the position of its image in the order of training and the index of the view. Neither depends on the state of a
generator, the number of workers or the number of processes, so training can resume at any step.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssql_det.core.errors import UserError, printable
from ssql_det.core.processes import ignore_interrupts
from ssql_det.core.rng import derive_seed, restoring_rng, seed_cpu_rng
from ssql_det.pretrain.data import ImageDataset
from ssql_det.ssl.augmentations import Augmentation, draw_random_numbers

T = TypeVar("T")

_MAX_ATTEMPTS = 100  # images in a row, all unreadable, after which the run fails
_logger = logging.getLogger(__name__)

# Of an item of _ViewDataset: the position of an image in the order of training, and its index in the data set.
_Key = tuple[int, int]


@dataclass(frozen=True)
class ViewBatch:
    """This process's share of a batch: ``views`` has one tensor [N, 3, S, S] for each view of the N images.

    The views are uint8 until the augmentation's ``batch_transform`` has augmented them.
    """

    views: tuple[Tensor, ...]
    positions: tuple[int, ...]  # of the N images, counted from the start of the training over all processes
    bad_files: tuple[str, ...]  # unreadable files, each replaced by the next image of the data set

    def pin_memory(self) -> ViewBatch:
        """Called by a DataLoader that pins memory."""
        return replace(self, views=tuple(view.pin_memory() for view in self.views))


class BadImageCounter:
    """Logs once each file that this process cannot read; raises a ``UserError`` if there are more than ``max_files``.

    >>> counter = BadImageCounter(max_files=0)
    >>> counter.update(ViewBatch((), (), bad_files=("torn.jpg",)))
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: torn.jpg cannot be read (1 so far); DATA.MOST_BAD_IMAGES allows 0...
    """

    def __init__(self, max_files: int) -> None:
        self.max_files = max_files
        self.files: set[str] = set()

    def update(self, batch: ViewBatch) -> None:
        for file in batch.bad_files:
            if file in self.files:
                continue
            self.files.add(file)
            count = f"{len(self.files)} so far"
            _logger.warning("%s cannot be read, the next image is used instead (%s)", printable(file), count)
            if len(self.files) > self.max_files:
                raise UserError(
                    f"{file} cannot be read ({count}); DATA.MOST_BAD_IMAGES allows {self.max_files}: repair or remove "
                    "unreadable files, or increase DATA.MOST_BAD_IMAGES"
                )


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """The number of whole batches in an epoch. The images that do not fill a batch are skipped; they differ by epoch.

    >>> steps_per_epoch(50000, 256)
    195
    """
    return num_images // batch_size


def build_augmented_view_loader(
    images: ImageDataset, augmentation: Augmentation, batch_size: int, seed: int, device: torch.device, **options: Any
) -> Iterator[ViewBatch]:
    """:func:`build_view_loader` with augmented views, on ``device``; ``options`` are its other arguments.

    >>> from PIL import Image
    >>> from ssql_det.ssl.augmentations import build_augmentation
    >>> from ssql_det.pretrain.data import ImageDataset
    >>> red = ImageDataset("red", ("red",) * 9, lambda index: Image.new("RGB", (48, 48), "red"))
    >>> loader = build_augmented_view_loader(red, build_augmentation("cifar"), 4, seed, torch.device("cpu"))
    >>> next(loader).views[0].dtype
    torch.float32
    """
    augment, transform = partial(_augment, augmentation, seed, device), augmentation.image_transform
    if device.type == "cpu":
        return build_view_loader(images, transform, batch_size, seed, batch_transform=augment, **options)
    batches = build_view_loader(images, transform, batch_size, seed, pin_memory=device.type == "cuda", **options)
    return _augment_ahead(batches, augment, device) if device.type == "cuda" else map(augment, batches)


def _augment(augmentation: Augmentation, seed: int, device: torch.device, batch: ViewBatch) -> ViewBatch:
    views = []
    for view_index, view in enumerate(batch.views):
        random_numbers = draw_random_numbers(seed, batch.positions, view_index, augmentation.num_random_numbers)
        views.append(augmentation.batch_transform(view.to(device, non_blocking=True), random_numbers))
    return replace(batch, views=tuple(views))


def _augment_ahead(
    batches: Iterator[ViewBatch], augment: Callable[[ViewBatch], ViewBatch], device: torch.device
) -> Iterator[ViewBatch]:
    """Copy and augment each batch in a stream of its own, while the GPU still trains on the batch before it."""
    stream, training_stream = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        following = augment(next(batches))
    while True:
        training_stream.wait_stream(stream)
        current = following
        for view in current.views:
            view.record_stream(training_stream)  # its memory is not used again before the step has read it
        with torch.cuda.stream(stream):
            following = augment(next(batches))
        yield current


def build_view_loader(
    images: ImageDataset,
    transform: Callable[[Image], Tensor],
    batch_size: int,
    seed: int,
    first_batch: int = 0,
    num_views: int = 2,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    batch_transform: Callable[[ViewBatch], ViewBatch] | None = None,
    pin_memory: bool = False,
) -> Iterator[ViewBatch]:
    """Endless batches from index ``first_batch`` on; ``batch_size`` is the total over ``world_size`` processes.

    ``transform`` returns a view, uint8 [3, S, S]. It may use torch's global generator, whose state is restored.
    ``batch_transform`` is applied to whole batches by the processes that load them. With ``pin_memory`` a copy of a
    batch to a GPU does not wait for the work before it.

    >>> from PIL import Image
    >>> from ssql_det.ssl.augmentations import build_augmentation
    >>> from ssql_det.pretrain.data import ImageDataset
    >>> red = ImageDataset("red", ("red",) * 9, lambda index: Image.new("RGB", (48, 48), "red"))
    >>> loader = build_view_loader(red, build_augmentation("cifar").image_transform, batch_size=4, seed=0)
    >>> first, second = next(loader).views
    >>> first.shape
    torch.Size([4, 3, 32, 32])
    """
    if batch_size < 1 or batch_size % world_size:
        raise UserError(
            f"a batch of {batch_size} cannot be split over {world_size} processes; use a multiple of {world_size}"
        )
    if len(images) < batch_size:
        raise UserError(
            f"{images.name} has {len(images)} images, too few for a batch of {batch_size}; reduce the batch size"
        )
    dataset = _ViewDataset(images, transform, seed, num_views)
    batches = _sample_batches(len(images), batch_size, seed, first_batch, rank, world_size)
    collate = partial(_collate_views, batch_transform)
    return load_batches(dataset, batches, collate, seed, workers, pin_memory)


def load_batches(
    dataset: Dataset[T | str],
    batches: Iterable[Any],
    collate: Callable[[list[T]], T],
    seed: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[T]:
    """Load and collate the items of each list of keys in ``batches``. An item that is a string is an error message,
    raised as a ``UserError`` in this process, because an exception in a worker would print the worker's traceback."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate_or_error, collate),
        generator=torch.Generator().manual_seed(derive_seed(seed)),  # the default draws from the global generator
        worker_init_fn=ignore_interrupts,
        pin_memory=pin_memory,
    )
    return map(_raise_if_error, loader)


def _sample_batches(
    num_images: int, batch_size: int, seed: int, first_batch: int, rank: int, world_size: int
) -> Iterator[list[_Key]]:
    """This process's share of each batch. Epochs before ``first_batch`` are skipped without iterating over them."""
    epoch_steps, images_per_rank = steps_per_epoch(num_images, batch_size), batch_size // world_size
    for epoch in itertools.count(first_batch // epoch_steps):
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        order = torch.randperm(num_images, generator=generator)
        for batch_index in range(max(first_batch, epoch * epoch_steps), (epoch + 1) * epoch_steps):
            position = batch_index * batch_size + rank * images_per_rank
            offset = position - epoch * epoch_steps * batch_size
            indices = order[offset : offset + images_per_rank].tolist()
            yield list(enumerate(indices, start=position))


class _ViewDataset(Dataset[ViewBatch | str]):
    """Each item is a batch with the views of one image, or an error message. Only lists of items can be loaded."""

    def __init__(self, images: ImageDataset, transform: Callable[[Image], Tensor], seed: int, num_views: int) -> None:
        self._images, self._transform, self._seed, self._num_views = images, transform, seed, num_views

    def __getitems__(self, keys: Sequence[_Key]) -> list[ViewBatch | str]:
        with restoring_rng():  # once per batch, because it takes as long as a fourth of a view
            return [self._load(*key) for key in keys]

    def _load(self, position: int, index: int) -> ViewBatch | str:
        bad_files: list[str] = []
        reason = ""
        for offset in range(min(_MAX_ATTEMPTS, len(self._images))):
            image_index = (index + offset) % len(self._images)
            try:
                image = self._images[image_index]
            except Exception as error:  # decoders raise all kinds of exceptions
                bad_files.append(self._images.file(image_index))
                reason = reason or _format_error(error)
                continue
            try:
                views = tuple(self._make_view(image, position, view_index) for view_index in range(self._num_views))
            except Exception as error:  # the transform is at fault, not the file
                return f"{self._images.file(image_index)}: the transform failed: {_format_error(error)}"
            return ViewBatch(views, (position,), tuple(bad_files))
        return (
            f"{len(bad_files)} images in a row cannot be read, starting with {bad_files[0]} ({reason}); "
            "repair the files, or use other data"
        )

    def _make_view(self, image: Image, position: int, view_index: int) -> Tensor:
        seed_cpu_rng(self._seed, position, view_index)
        return self._transform(image)[None]


def _format_error(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _collate_views(batch_transform: Callable[[ViewBatch], ViewBatch] | None, items: Sequence[ViewBatch]) -> ViewBatch:
    views = tuple(map(torch.cat, zip(*(item.views for item in items), strict=True)))
    positions = tuple(position for item in items for position in item.positions)
    batch = ViewBatch(views, positions, tuple(dict.fromkeys(file for item in items for file in item.bad_files)))
    return batch if batch_transform is None else batch_transform(batch)


def _collate_or_error(collate: Callable[[list[T]], T], items: list[T | str]) -> T | str:
    errors = [item for item in items if isinstance(item, str)]
    return errors[0] if errors else collate([item for item in items if not isinstance(item, str)])


def _raise_if_error(batch: T | str) -> T:
    if isinstance(batch, str):
        raise UserError(batch)
    return batch
