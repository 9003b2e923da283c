"""A frozen backbone's features of labelled images, as it is: inside ``quantization.at(...)`` those of its few bits.

Images are as a test shows them, or look different in each epoch; then their features are made anew, or kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssql_det.convert import InputFormat
from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seeded_rng
from ssql_det.pretrain.data import ImageDataset
from ssql_det.pretrain.view_loader import loaded
from ssql_det.quant.forward import evaluating
from ssql_det.ssl.augmentations import Augmentation, normalize

MOST_BYTES = 8 << 30  # of decoded images, or of features, that are kept
_TOGETHER = 256  # images that pass through the network where no batch is asked for

Place = tuple[int, Tensor]
"""An epoch, and the numbers [N] of the images that make up a batch of it."""

Seen = Callable[[Iterator[Place]], Iterable[Tensor]]
"""The features [N, D] of each place, one after the other."""


@dataclass(frozen=True)
class LabelledImages:
    """Images [N, 3, S, S], uint8, as a recipe shows them in a test, and their classes [N]."""

    name: str
    pixels: Tensor
    labels: Tensor

    def first(self, count: int) -> LabelledImages:
        return LabelledImages(self.name, self.pixels[:count], self.labels[:count])

    def batches(self, input: InputFormat, size: int = 256) -> Iterator[Tensor]:
        """Normalized, in even parts of at most ``size``: a part of one image has no variance."""
        for part in self.pixels.tensor_split(-(-len(self.pixels) // size)):
            yield normalize(part, input)


def labelled(images: ImageDataset, recipe: Augmentation, most: int | None = None, seed: int = 0) -> LabelledImages:
    """All images, or ``most`` of them chosen by the seed."""
    order = chosen(images, most, seed)
    labels = get_labels(images, order)
    size = len(order) * 3 * recipe.size**2
    if size > MOST_BYTES:
        fitting = MOST_BYTES // (3 * recipe.size**2)
        raise UserError(
            f"{len(order)} images of {images.name} at {recipe.size} pixels take {size / 2**30:.0f} GiB of memory; ask "
            f"for {f'fewer, as --images {fitting}' if fitting else 'smaller ones'}"
        )
    pixels = torch.empty(len(order), 3, recipe.size, recipe.size, dtype=torch.uint8)
    for place, index in enumerate(track(order, f"reading {images.name}")):
        pixels[place] = framed(images, index, recipe.test_transform)
    return LabelledImages(images.name, pixels, labels)


def chosen(images: ImageDataset, most: int | None = None, seed: int = 0) -> list[int]:
    """The numbers of ``most`` of the images, or of all, in an order that follows from the seed; fewer are the first."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()[:most]


def get_labels(images: ImageDataset, indices: Sequence[int]) -> Tensor:
    if images.labels is None:
        raise UserError(f"{images.name} has no labels; name folders of classes, a labelled list or CIFAR")
    return torch.tensor([images.labels[index] for index in indices])


def framed(images: ImageDataset, index: int, frame: Callable[[Image], Tensor]) -> Tensor:
    """An image as it is shown, uint8 [3, S, S]; of one that cannot be read, its file."""
    try:
        return frame(images[index])
    except Exception as failure:  # a decoder can fail in any way
        reason = " ".join(str(failure).split())
        raise UserError(f"{images.file(index)} cannot be read ({reason}); mend it, or leave it out") from failure


@torch.no_grad()
def features(backbone: nn.Module, batches: Sequence[Tensor] | Iterator[Tensor]) -> Tensor:
    """[N, D] in evaluation mode, on the CPU; the network's mode is put back.

    >>> with quantization.at(Bits(4, 4)):
    ...     low = features(backbone, images.batches(IMAGENET))
    """
    device = next(backbone.parameters()).device
    with evaluating(backbone):
        return torch.cat([backbone(batch.to(device)).float().cpu() for batch in batches])


class AugmentedImages(Dataset[Tensor | str]):
    """``chosen`` of some images. What a view of one is follows from the seed, the image and the view's number alone.

    >>> augmented = AugmentedImages(images, range(len(images)), build_augmentation("cifar").image_transform)
    >>> next(augmented.views([(0, torch.tensor([5, 6]))])).shape  # uint8, in their first view
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        images: ImageDataset,
        chosen: Sequence[int],
        frame: Callable[[Image], Tensor],
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.labels = get_labels(images, chosen)
        self._images, self._chosen, self._frame, self._seed, self._workers = images, chosen, frame, seed, workers

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: tuple[int, int]) -> Tensor | str:
        """A view, or why there is none."""
        view, number = place
        index = self._chosen[number]
        try:
            with seeded_rng(self._seed, index, view):
                return framed(self._images, index, self._frame)
        except UserError as mistake:
            return str(mistake)

    def views(self, places: Iterable[Place]) -> Iterator[Tensor]:
        """Of each place the images in the view that has its epoch's number: uint8 [N, 3, S, S]."""
        numbers = ([(view, number) for number in part.tolist()] for view, part in places)
        return loaded(self, numbers, torch.stack, self._seed, self._workers)


def anew(backbone: nn.Module, augmented: AugmentedImages, input: InputFormat) -> Seen:
    """Features of a new view of each image in each epoch, through the backbone as it is at that moment.

    >>> with quantization.at(Bits(4, 4)):
    ...     train(layer, anew(backbone, augmented, CIFAR), augmented.labels, training)
    """

    def seen(places: Iterable[Place]) -> Iterator[Tensor]:
        device = next(backbone.parameters()).device
        for pixels in augmented.views(places):
            yield features(backbone, [normalize(pixels.to(device), input)])

    return seen


def kept(backbone: nn.Module, augmented: AugmentedImages, input: InputFormat, views: int) -> Seen:
    """Features of so many views of each image, made now; they come round again. With a view for each epoch it is
    ``anew``, with fewer the layer sees less of what the frame can do.
    """
    parts = torch.arange(len(augmented)).split(_TOGETHER)
    places = ((view, part) for view in range(views) for part in parts)
    made = iter(track(anew(backbone, augmented, input)(places), "keeping features", views * len(parts)))
    known = [torch.cat(list(itertools.islice(made, len(parts)))) for _ in range(views)]
    return lambda places: (known[epoch % views][part] for epoch, part in places)
