"""Features of a frozen backbone, for kNN and linear probes; inside ``quantization.at(...)`` the backbone is quantized.

Images go through the test transform once, or are augmented again in each epoch. Features of augmented images are
recomputed in each epoch, or cached for a number of views of each image.
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

MAX_BYTES = 8 << 30  # the limit of memory for the images of one split, and as much again for cached features
_BATCH_SIZE = 256  # images in a forward pass

EpochBatch = tuple[int, Tensor]
"""The number of an epoch, from 0, and the positions [N] of one batch's images in :class:`AugmentedImages`."""

FeatureLoader = Callable[[Iterator[EpochBatch]], Iterable[Tensor]]
"""A function that yields the features [N, D] of each batch."""


@dataclass(frozen=True)
class LabelledImages:
    """Images [N, 3, S, S], uint8, after the test transform, with their labels [N]."""

    name: str
    pixels: Tensor
    labels: Tensor

    def take_first(self, count: int) -> LabelledImages:
        return LabelledImages(self.name, self.pixels[:count], self.labels[:count])

    def batches(self, input_format: InputFormat, batch_size: int = _BATCH_SIZE) -> Iterator[Tensor]:
        """Batches in the network's input format."""
        for batch in split_evenly(self.pixels, batch_size):
            yield normalize(batch, input_format)


def split_evenly(images: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Batches of nearly equal size, so that none has a single image: norm statistics may be re-estimated on them.

    >>> [len(batch) for batch in split_evenly(torch.zeros(9, 3), 8)]
    [5, 4]
    """
    return images.tensor_split(-(-len(images) // batch_size)) if len(images) else ()


def load_labelled_images(
    images: ImageDataset, augmentation: Augmentation, max_images: int | None = None, seed: int = 0
) -> LabelledImages:
    """All images, or ``max_images`` of them chosen by the seed, in the order of :func:`choose_indices`."""
    indices = choose_indices(images, max_images, seed)
    labels = get_labels(images, indices)
    bytes_per_image = 3 * augmentation.size**2
    if len(indices) * bytes_per_image > MAX_BYTES:
        max_fitting = MAX_BYTES // bytes_per_image
        raise UserError(
            f"{len(indices)} images of {images.name} at {augmentation.size} pixels take "
            f"{len(indices) * bytes_per_image / 2**30:.0f} GiB of memory; use "
            f"{f'at most --images {max_fitting}' if max_fitting else 'a smaller --size'}"
        )
    pixels = torch.empty(len(indices), 3, augmentation.size, augmentation.size, dtype=torch.uint8)
    for position, index in enumerate(track(indices, f"reading {images.name}")):
        pixels[position] = load_transformed(images, index, augmentation.test_transform)
    return LabelledImages(images.name, pixels, labels)


def choose_indices(images: ImageDataset, count: int | None = None, seed: int = 0) -> list[int]:
    """The first ``count`` indices, or all, in a random order that depends only on the seed."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()[:count]


def get_labels(images: ImageDataset, indices: Sequence[int]) -> Tensor:
    if images.labels is None:
        raise NoLabelledSplitError(f"{images.name} has no labels; use class folders, a labelled text file, or CIFAR")
    return torch.tensor([images.labels[index] for index in indices])


def load_transformed(images: ImageDataset, index: int, transform: Callable[[Image], Tensor]) -> Tensor:
    """A transformed image, uint8 [3, S, S]. Raises a ``UserError`` with the file's name if it cannot be read."""
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
    """The standard deviation over N of each of the D dimensions of L2-normalized features, averaged, times ``sqrt(D)``
    (Chen and He, CVPR 2021).

    Near 1 the features [N, D] point in all directions; at 0 they have collapsed to a single direction.

    >>> round(compute_spread(torch.randn(4096, 128)), 1), compute_spread(torch.ones(8, 128))
    (1.0, 0.0)
    """
    return float(F.normalize(features.detach().float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5)


class AugmentedImages(Dataset[Tensor | str]):
    """The images of a data set at ``indices``, augmented; a view depends only on the seed, the image and the epoch."""

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

    def __getitem__(self, epoch_and_position: tuple[int, int]) -> Tensor | str:
        """The view in an epoch of the image at a position in ``indices``; for an unreadable file an error message,
        which `load_batches` raises in the main process."""
        epoch, position = epoch_and_position
        index = self._indices[position]
        try:
            with seeded_rng(self._seed, index, epoch):
                return load_transformed(self._images, index, self._transform)
        except UserError as error:
            return str(error)

    def views(self, batches: Iterable[EpochBatch], pin_memory: bool = False) -> Iterator[Tensor]:
        """The views of each batch, uint8 [N, 3, S, S]; pinned, their copy to a GPU does not wait."""
        keys = ([(epoch, position) for position in positions.tolist()] for epoch, positions in batches)
        return load_batches(self, keys, torch.stack, self._seed, self._workers, pin_memory)


def stream_features(backbone: nn.Module, augmented: AugmentedImages, input_format: InputFormat) -> FeatureLoader:
    """A loader of features of a new view of each image in each epoch, computed when a batch is requested."""

    def load_features(batches: Iterable[EpochBatch]) -> Iterator[Tensor]:
        device = next(backbone.parameters()).device
        for pixels in augmented.views(batches, pin_memory=device.type == "cuda"):
            yield extract_features(backbone, [normalize(pixels.to(device, non_blocking=True), input_format)])

    return load_features


def cache_features(
    backbone: nn.Module, augmented: AugmentedImages, input_format: InputFormat, num_views: int
) -> FeatureLoader:
    """A loader of features of ``num_views`` views of each image, which are all computed when this is called; epoch
    ``e`` uses view ``e % num_views``."""
    position_batches = torch.arange(len(augmented)).split(_BATCH_SIZE)
    batches = ((view, positions) for view in range(num_views) for positions in position_batches)
    streamed = stream_features(backbone, augmented, input_format)(batches)
    tracked = iter(track(streamed, "caching features", num_views * len(position_batches)))
    cached = [torch.cat(list(itertools.islice(tracked, len(position_batches)))) for _ in range(num_views)]
    return lambda batches: (cached[epoch % num_views][positions] for epoch, positions in batches)
