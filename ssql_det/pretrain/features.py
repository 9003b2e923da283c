"""A frozen backbone's features of labelled images, as it is: inside ``quantization.at(...)`` those of its few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor, nn

from ssql_det.convert import Input
from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.pretrain.data import Images
from ssql_det.quant.feeding import evaluating
from ssql_det.ssl.views import Recipe, normalized

MOST_BYTES = 8 << 30  # of decoded images, or of features, that are kept


@dataclass(frozen=True)
class Labelled:
    """Images [N, 3, S, S], uint8, as a recipe shows them in a test, and their classes [N]."""

    name: str
    pixels: Tensor
    labels: Tensor

    def first(self, count: int) -> Labelled:
        return Labelled(self.name, self.pixels[:count], self.labels[:count])

    def batches(self, input: Input, size: int = 256) -> Iterator[Tensor]:
        """Normalized, in even parts of at most ``size``: a part of one image has no variance."""
        for part in self.pixels.tensor_split(-(-len(self.pixels) // size)):
            yield normalized(part, input)


def labelled(images: Images, recipe: Recipe, most: int | None = None, seed: int = 0) -> Labelled:
    """All images, or ``most`` of them chosen by the seed."""
    order = chosen(images, most, seed)
    labels = labels_of(images, order)
    size = len(order) * 3 * recipe.size**2
    if size > MOST_BYTES:
        fitting = MOST_BYTES // (3 * recipe.size**2)
        raise UserError(
            f"{len(order)} images of {images.name} at {recipe.size} pixels take {size / 2**30:.0f} GiB of memory; ask "
            f"for {f'fewer, as --images {fitting}' if fitting else 'smaller ones'}"
        )
    pixels = torch.empty(len(order), 3, recipe.size, recipe.size, dtype=torch.uint8)
    for place, index in enumerate(track(order, f"reading {images.name}")):
        pixels[place] = framed(images, index, recipe.plain)
    return Labelled(images.name, pixels, labels)


def chosen(images: Images, most: int | None = None, seed: int = 0) -> list[int]:
    """The numbers of ``most`` of the images, or of all, in an order that follows from the seed; fewer are the first."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()[:most]


def labels_of(images: Images, indices: Sequence[int]) -> Tensor:
    if images.labels is None:
        raise UserError(f"{images.name} has no labels; name folders of classes, a labelled list or CIFAR")
    return torch.tensor([images.labels[index] for index in indices])


def framed(images: Images, index: int, frame: Callable[[Image], Tensor]) -> Tensor:
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
