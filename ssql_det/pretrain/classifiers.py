"""What frozen features know of the classes: by their neighbours, and by a linear layer trained on them.

How a linear probe shows images and trains its layer: fast, or as SSQL's published code does it.

=========  ============================================================================================================
fast       features of each image once, as tests show it, scaled to a mean norm of 1; the published schedule of CIFAR
published  views that are new in each epoch, through the quantized network, and features as they are. CIFAR: crops of .8
           to 1 of the image, flips; SGD at 30 for 512 images, 100 epochs, a tenth after 60 and 80. ImageNet: crops of
           .08 to 1, flips; LARS at .8 (ResNet-18) or 2.4 (ResNet-50), 60 epochs, a cosine
=========  ============================================================================================================

CIFAR's crops are those of its program; its config files say .08, and are not asked. ImageNet's batch is not published
as one number: 2048 is eight GPUs of 256, and .8 its rate by the files' own rule, .1 for 256. The toy digits are
cropped as CIFAR's images, and not flipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seeded_rng
from ssql_det.pretrain.data import open_images
from ssql_det.pretrain.features import Place, Seen, features, labelled
from ssql_det.pretrain.optim import LARS
from ssql_det.quant import Bits, Calibration, Quantization, Scheme, evaluate_at_widths, quant_points
from ssql_det.ssl.augmentations import Augmentation

NEIGHBOURS, TEMPERATURE = 20, 0.07
_WIDE = 2048  # features of a ResNet of bottlenecks
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "LARS": partial(LARS, vectors=True),  # the published probe's scales the bias, too
}


@dataclass(frozen=True)
class Training:
    """``falls`` are shares of the epochs after which the rate is a tenth of what it was; without them it is a cosine.

    >>> training = Training("SGD", rate=30.0, batch=512, epochs=100, falls=(0.6, 0.8))
    >>> training.rate_in(59), training.rate_in(60), training.at_batch(256).rate
    (30.0, 3.0, 15.0)
    """

    optimizer: str
    rate: float
    batch: int
    epochs: int
    falls: tuple[float, ...] = ()

    def at_batch(self, batch: int) -> Training:
        """With batches of another size, and a rate in proportion."""
        return replace(self, rate=self.rate * batch / self.batch, batch=batch)

    def rate_in(self, epoch: int) -> float:
        if not self.falls:
            return self.rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        rate = self.rate
        for share in self.falls:
            rate *= 0.1 if epoch >= share * self.epochs else 1
        return rate


FAST = Training("SGD", 30.0, 512, 100, (0.6, 0.8))


@dataclass(frozen=True)
class Protocol:
    """What is said of a linear probe; ``None``: as the protocol has it. ``cached_views`` of each image stand for all
    that the published one would make.

    >>> Protocol("published", epochs=10).training(build_augmentation("cifar"), 512)
    Training(optimizer='SGD', rate=30.0, batch=512, epochs=10, falls=(0.6, 0.8))
    """

    name: str = "fast"
    epochs: int | None = None
    batch: int | None = None
    cached_views: int | None = None

    def __post_init__(self) -> None:
        if self.cached_views and not self.is_published:
            raise UserError("the fast protocol makes no views that could be cached: --protocol published for them")

    @property
    def is_published(self) -> bool:
        return self.name == "published"

    def training(self, recipe: Augmentation, width: int) -> Training:
        """Of a layer on features of this width."""
        training = FAST
        if self.is_published and recipe.name == "imagenet":
            training = Training("LARS", 2.4 if width >= _WIDE else 0.8, 2048, 60)
        return replace(training, epochs=self.epochs or training.epochs).at_batch(self.batch or training.batch)

    def shown(self, recipe: Augmentation) -> Augmentation:
        """The recipe with the protocol's frame and plain way; a recipe's look is not a probe's."""
        return _as_published(recipe) if self.is_published else recipe

    def described(self, training: Training) -> dict[str, str | int | float]:
        """As rows have it."""
        how: dict[str, str | int | float] = {"linear": self.name, "optimizer": training.optimizer}
        how |= {"rate": training.rate, "batch": training.batch, "epochs": training.epochs}
        return how | ({"cached_views": self.cached_views} if self.cached_views else {})


def knn(seen: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Top-1 accuracy, in percent, of a vote of the nearest by cosine, weighted (Wu et al., CVPR 2018).

    >>> knn(train_features, train_labels, test_features, test_labels)
    93.2
    """
    seen, asked = F.normalize(seen, dim=1), F.normalize(asked, dim=1)
    classes = int(labels.max()) + 1
    right = 0
    for part, expected in zip(asked.split(1024), truth.split(1024), strict=True):
        likeness, nearest = (part @ seen.T).topk(min(neighbours, len(seen)), dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[nearest], (likeness / TEMPERATURE).exp())
        right += int((votes.argmax(1) == expected).sum())
    return 100 * right / len(truth)


def linear(seen: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, training: Training = FAST) -> float:
    """Top-1 accuracy, in percent, of a linear layer trained on the features: the published schedule, no augmentation.

    Features are scaled to a mean norm of 1, so that one learning rate serves networks of any scale.

    >>> linear(train_features, train_labels, test_features, test_labels)
    95.5
    """
    scale = seen.norm(dim=1).mean().clamp(min=1e-12)
    seen, asked = seen / scale, asked / scale
    layer = begun(seen.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    train(layer, lambda places: (seen[part] for _, part in places), labels, training)
    return top1(layer, asked, truth)


def linear_of_views(
    seen: Seen,
    labels: Tensor,
    asked: Tensor,
    truth: Tensor,
    training: Training,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """The same of a layer that is trained on features as they are, of whatever is seen in each epoch; as published.

    >>> linear_of_views(anew(backbone, augmented, CIFAR), augmented.labels, test_features, test_labels, training)
    94.9
    """
    layer = begun(asked.shape[1], int(labels.max()) + 1, seed).to(device)
    train(layer, seen, labels, training, seed)
    return top1(layer, asked, truth)


def begun(width: int, classes: int, seed: int = 0) -> nn.Linear:
    """A layer as torch begins one, the same for the same seed."""
    with seeded_rng(seed, "layer"):
        return nn.Linear(width, classes)


def train(layer: nn.Linear, seen: Seen, labels: Tensor, training: Training, seed: int = 0) -> None:
    """By cross entropy, without weight decay; the order of the images in each epoch follows from the seed.

    >>> train(layer, lambda places: (features[part] for _, part in places), labels, training)
    """
    training, device = training.at_batch(min(training.batch, len(labels))), layer.weight.device
    optimizer = _OPTIMIZERS[training.optimizer](layer.parameters(), lr=training.rate, momentum=0.9)
    places = partial(_places, len(labels), training, seed)
    steps = training.epochs * -(-len(labels) // training.batch)
    batches = zip(places(), seen(places()), strict=True)
    for (epoch, part), known in track(batches, "training a linear layer", steps):
        optimizer.param_groups[0]["lr"] = training.rate_in(epoch)
        optimizer.zero_grad()
        F.cross_entropy(layer(known.to(device)), labels[part].to(device)).backward()
        optimizer.step()


def _places(count: int, training: Training, seed: int) -> Iterator[Place]:
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(training.epochs):
        for part in torch.randperm(count, generator=generator).split(training.batch):
            yield epoch, part


@torch.no_grad()
def top1(layer: nn.Linear, asked: Tensor, truth: Tensor) -> float:
    """In percent."""
    predicted = layer(asked.to(layer.weight.device)).argmax(1).cpu()
    return 100 * int((predicted == truth).sum()) / len(truth)


def _as_published(recipe: Augmentation) -> Augmentation:
    size, name = recipe.size, recipe.name
    resampling = InterpolationMode.BICUBIC if name == "cifar" else InterpolationMode.BILINEAR
    least = 0.08 if name == "imagenet" else 0.8
    crop = v2.RandomResizedCrop(size, scale=(least, 1), ratio=(3 / 4, 4 / 3), interpolation=resampling)
    flips = [] if name == "digits" else [v2.RandomHorizontalFlip()]
    recipe = replace(recipe, image_transform=v2.Compose([crop, *flips, v2.PILToTensor()]))
    if name != "cifar":
        return recipe
    whole = v2.Resize(size * 8 // 7, interpolation=resampling)
    return replace(recipe, test_transform=v2.Compose([whole, v2.CenterCrop(size), v2.PILToTensor()]))


@dataclass(frozen=True)
class MonitorConfig:
    """The keys of ``MONITOR``: how often neighbours are asked, at which widths, and of which images."""

    period: int  # epochs
    data: str
    widths: tuple[Bits, ...]
    scheme: Scheme
    images: int  # of each split at most

    def __post_init__(self) -> None:
        self.scheme.check_bits(self.widths)


def spread(features: Tensor) -> float:
    """Near 1 where features [N, D] point everywhere, 0 where all are one: the standard deviation of each normalized
    feature, times ``sqrt(D)`` (Chen and He, CVPR 2021).

    >>> spread(torch.randn(4096, 128))
    0.99
    """
    return float(F.normalize(features.detach().float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5)


class Monitor:
    """kNN accuracy of the frozen backbone at some bit-widths, now and then, by ``knn/4w4a``."""

    def __init__(self, monitoring: MonitorConfig, recipe: Augmentation, backbone: nn.Module) -> None:
        self.period = monitoring.period
        self._widths, self._scheme = monitoring.widths, monitoring.scheme
        self._backbone, self._input = backbone, recipe.input
        splits = [open_images(monitoring.data, split) for split in ("train", "val")]
        self._seen, self._asked = (labelled(images, recipe, monitoring.images) for images in splits)

    @torch.no_grad()
    def take(self) -> dict[str, float]:
        calibration = list(self._seen.first(Calibration().images).batches(self._input))
        points = quant_points(self._backbone, self._scheme.placement, self._input.value_range)
        quantization = Quantization(self._backbone, points, self._scheme)
        quantization.calibrate(calibration)
        found = evaluate_at_widths(quantization, self._widths, lambda _: self._accuracy(), batches=calibration)
        return {f"knn/{bits}": accuracy for bits, accuracy in found}

    def _accuracy(self) -> float:
        known, other = (features(self._backbone, each.batches(self._input)) for each in (self._seen, self._asked))
        return knn(known, self._seen.labels, other, self._asked.labels)
