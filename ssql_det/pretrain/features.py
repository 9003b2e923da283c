"""Features of a frozen backbone, for kNN and linear probes; inside ``quantization.at(...)`` those of the quantized one.

Images are transformed once as in testing, or augmented anew in each epoch; then their features are recomputed in each
epoch, or cached for a number of views.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssql_det.convert import InputFormat
from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seeded_rng
from ssql_det.pretrain.data import ImageDataset, NoLabelledSplitError
from ssql_det.pretrain.view_loader import load_batches
from ssql_det.quant.forward import evaluating
from ssql_det.ssl.augmentations import Augmentation, normalize

MAX_BYTES = 8 << 30  # of images or features that are held in memory
_BATCH_SIZE = 256

EpochBatch = tuple[int, Tensor]
"""The number of an epoch, and the indices [N] of the images in one of its batches."""

FeatureSource = Callable[[Iterator[EpochBatch]], Iterable[Tensor]]
"""Yields the features [N, D] of each batch."""


@dataclass(frozen=True)
class LabelledImages:
    """Images [N, 3, S, S], uint8, after the test transform, with their labels [N]."""

    name: str
    pixels: Tensor
    labels: Tensor

    def first(self, count: int) -> LabelledImages:
        return LabelledImages(self.name, self.pixels[:count], self.labels[:count])

    def batches(self, input: InputFormat, batch_size: int = _BATCH_SIZE) -> Iterator[Tensor]:
        """Normalized batches of nearly equal size, so that no batch has a single image, whose variance is undefined."""
        for batch in self.pixels.tensor_split(-(-len(self.pixels) // batch_size)):
            yield normalize(batch, input)


def load_labelled_images(
    images: ImageDataset, augmentation: Augmentation, max_images: int | None = None, seed: int = 0
) -> LabelledImages:
    """All images, or ``max_images`` of them chosen by the seed, in the order of :func:`choose_indices`."""
    indices = choose_indices(images, max_images, seed)
    labels = get_labels(images, indices)
    bytes_per_image = 3 * augmentation.size**2
    if len(indices) * bytes_per_image > MAX_BYTES:
        fitting = MAX_BYTES // bytes_per_image
        raise UserError(
            f"{len(indices)} images of {images.name} at {augmentation.size} pixels take "
            f"{len(indices) * bytes_per_image / 2**30:.0f} GiB of memory; use "
            f"{f'fewer: --images {fitting}' if fitting else 'a smaller --size'}"
        )
    pixels = torch.empty(len(indices), 3, augmentation.size, augmentation.size, dtype=torch.uint8)
    for row, index in enumerate(track(indices, f"reading {images.name}")):
        pixels[row] = load_transformed(images, index, augmentation.test_transform)
    return LabelledImages(images.name, pixels, labels)


def choose_indices(images: ImageDataset, count: int | None = None, seed: int = 0) -> list[int]:
    """The indices of ``count`` images, or of all, shuffled by the seed; a smaller count gives the first of them."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()[:count]


def get_labels(images: ImageDataset, indices: Sequence[int]) -> Tensor:
    if images.labels is None:
        raise NoLabelledSplitError(f"{images.name} has no labels; use class folders, a labelled text file, or CIFAR")
    return torch.tensor([images.labels[index] for index in indices])


def load_transformed(images: ImageDataset, index: int, transform: Callable[[Image], Tensor]) -> Tensor:
    """A transformed image, uint8 [3, S, S]; a ``UserError`` that names the file if it cannot be read."""
    try:
        return transform(images[index])
    except Exception as error:  # decoders raise all kinds of exceptions
        reason = " ".join(str(error).split())
        raise UserError(f"{images.file(index)} cannot be read ({reason}); repair or remove it") from error


@torch.no_grad()
def extract_features(backbone: nn.Module, batches: Sequence[Tensor] | Iterator[Tensor]) -> Tensor:
    """Features [N, D] in evaluation mode, on the CPU. The backbone's mode is restored.

    >>> extract_features(model, loader).shape
    torch.Size([4, 192])
    """
    device = next(backbone.parameters()).device
    with evaluating(backbone):
        return torch.cat([backbone(batch.to(device)).float().cpu() for batch in batches])


def compute_spread(features: Tensor) -> float:
    """The standard deviation of each L2-normalized feature, times ``sqrt(D)``, averaged (Chen and He, CVPR 2021).

    Near 1 features [N, D] point in all directions; at 0 they have collapsed to a single one.

    >>> round(compute_spread(torch.randn(4096, 128)), 1), compute_spread(torch.ones(8, 128))
    (1.0, 0.0)
    """
    return float(F.normalize(features.detach().float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5)


class AugmentedImages(Dataset[Tensor | str]):
    """The images ``indices`` of a data set, augmented; a view depends on the seed, the image and the epoch alone."""

    def __init__(
        self,
        images: ImageDataset,
        indices: Sequence[int],
        transform: Callable[[Image], Tensor],
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self.labels = get_labels(images, indices)
        self._images, self._indices, self._transform = images, indices, transform
        self._seed, self._workers = seed, workers

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, item: tuple[int, int]) -> Tensor | str:
        """The view of an image in an epoch, or an error message."""
        epoch, number = item
        index = self._indices[number]
        try:
            with seeded_rng(self._seed, index, epoch):
                return load_transformed(self._images, index, self._transform)
        except UserError as error:
            return str(error)

    def views(self, batches: Iterable[EpochBatch]) -> Iterator[Tensor]:
        """The views of each batch, uint8 [N, 3, S, S]."""
        items = ([(epoch, number) for number in numbers.tolist()] for epoch, numbers in batches)
        return load_batches(self, items, torch.stack, self._seed, self._workers)


def stream_features(backbone: nn.Module, augmented: AugmentedImages, input: InputFormat) -> FeatureSource:
    """Features of a new view of each image in each epoch, computed by the backbone when they are needed."""

    def load_features(batches: Iterable[EpochBatch]) -> Iterator[Tensor]:
        device = next(backbone.parameters()).device
        for pixels in augmented.views(batches):
            yield extract_features(backbone, [normalize(pixels.to(device), input)])

    return load_features


def cache_features(
    backbone: nn.Module, augmented: AugmentedImages, input: InputFormat, num_views: int
) -> FeatureSource:
    """Features of ``num_views`` views of each image, computed now; epoch ``e`` uses view ``e % num_views``."""
    parts = torch.arange(len(augmented)).split(_BATCH_SIZE)
    batches = ((view, part) for view in range(num_views) for part in parts)
    stream = stream_features(backbone, augmented, input)(batches)
    tracked = iter(track(stream, "caching features", num_views * len(parts)))
    cached = [torch.cat(list(itertools.islice(tracked, len(parts)))) for _ in range(num_views)]
    return lambda batches: (cached[epoch % num_views][indices] for epoch, indices in batches)
