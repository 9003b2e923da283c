"""Labelled images that look different in each epoch, and a frozen backbone's features of them, made anew or kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssql_det.convert import Input
from ssql_det.core.choices import choices_of, number_of
from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import leave_interrupts_to_the_main_process
from ssql_det.pretrain.data import Images
from ssql_det.pretrain.features import features, framed, labels_of
from ssql_det.pretrain.layer import Place, Seen
from ssql_det.ssl.views import normalized

_TOGETHER = 256  # images that pass through the network where no batch is asked for


class Augmented(Dataset[Tensor | str]):
    """``chosen`` of some images. What a view of one is follows from the seed, the image and the view's number alone.

    >>> augmented = Augmented(images, range(len(images)), recipe("cifar").frame)
    >>> next(augmented.views([(0, torch.tensor([5, 6]))])).shape  # uint8, in their first view
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        images: Images,
        chosen: Sequence[int],
        frame: Callable[[Image], Tensor],
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.labels = labels_of(images, chosen)
        self._images, self._chosen, self._frame, self._seed, self._workers = images, chosen, frame, seed, workers

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: tuple[int, int]) -> Tensor | str:
        """A view, or why there is none: a worker's exception would come with its whole traceback."""
        view, number = place
        index = self._chosen[number]
        try:
            with choices_of(self._seed, index, view):
                return framed(self._images, index, self._frame)
        except UserError as mistake:
            return str(mistake)

    def views(self, places: Iterable[Place]) -> Iterator[Tensor]:
        """Of each place the images in the view that has its epoch's number: uint8 [N, 3, S, S]."""
        loader = DataLoader(
            self,
            batch_sampler=([(view, number) for number in part.tolist()] for view, part in places),
            num_workers=self._workers,
            collate_fn=_together,
            generator=torch.Generator().manual_seed(number_of(self._seed)),  # else it draws from the global one
            worker_init_fn=leave_interrupts_to_the_main_process,
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise UserError(pixels)
            yield pixels


def _together(samples: list[Tensor | str]) -> Tensor | str:
    views = []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        views.append(sample)
    return torch.stack(views)


def anew(backbone: nn.Module, augmented: Augmented, input: Input) -> Seen:
    """Features of a new view of each image in each epoch, through the backbone as it is at that moment.

    >>> with quantization.at(Bits(4, 4)):
    ...     train(layer, anew(backbone, augmented, CIFAR), augmented.labels, training)
    """

    def seen(places: Iterable[Place]) -> Iterator[Tensor]:
        device = next(backbone.parameters()).device
        for pixels in augmented.views(places):
            yield features(backbone, [normalized(pixels.to(device), input)])

    return seen


def kept(backbone: nn.Module, augmented: Augmented, input: Input, views: int) -> Seen:
    """Features of so many views of each image, made now; they come round again. With a view for each epoch it is
    ``anew``, with fewer the layer sees less of what the frame can do.
    """
    parts = torch.arange(len(augmented)).split(_TOGETHER)
    places = ((view, part) for view in range(views) for part in parts)
    made = iter(track(anew(backbone, augmented, input)(places), "keeping features", views * len(parts)))
    known = [torch.cat(list(itertools.islice(made, len(parts)))) for _ in range(views)]
    return lambda places: (known[epoch % views][part] for epoch, part in places)
