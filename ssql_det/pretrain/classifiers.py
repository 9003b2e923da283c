"""kNN and linear classifiers on frozen features, and the protocols of linear evaluation: fast, or as published.

=========  ============================================================================================================
fast       features of each image once, after the test transform, scaled to a mean norm of 1; CIFAR's published schedule
published  features of a new view in each epoch, unscaled. CIFAR: crops of .8 to 1 of the image, flips;
           SGD with LR 30 at batch size 512, 100 epochs, LR / 10 after 60 and 80. ImageNet: crops of .08
           to 1, flips; LARS with LR .8 (ResNet-18) or 2.4 (ResNet-50), 60 epochs, cosine schedule
=========  ============================================================================================================

In both protocols, training and test features are those of the network at the bit-width that is evaluated.

SSQL's published code is ambiguous in two values. CIFAR's crops follow the code, not the config files, which say .08.
ImageNet's batch size is taken as 2048 (256 on each of eight GPUs), for which the config files' rule, .1 per 256 images,
gives LR .8. Toy digits are cropped like CIFAR's images but not flipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seeded_rng
from ssql_det.pretrain.features import EpochBatch, FeatureLoader
from ssql_det.ssl.augmentations import Augmentation

NUM_NEIGHBOURS, TEMPERATURE = 20, 0.07  # of kNN, as in Wu et al., CVPR 2018
_BOTTLENECK_DIM = 2048  # feature dimension of ResNet-50 and deeper ResNets
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    # always_adapt: scale updates without weight decay too, and those of the bias, as published.
    "LARS": partial(Lars, eps=0.0, always_adapt=True),
}


@dataclass(frozen=True)
class LinearTraining:
    """Hyperparameters of a linear layer's training. LR is divided by 10 at each of ``milestones``, which are fractions
    of the epochs; without milestones LR follows a cosine.

    >>> training = LinearTraining("SGD", lr=30.0, batch_size=512, epochs=100, milestones=(0.6, 0.8))
    >>> training.lr_at(59), training.lr_at(60), training.with_batch_size(256).lr
    (30.0, 3.0, 15.0)
    """

    optimizer: str
    lr: float
    batch_size: int
    epochs: int
    milestones: tuple[float, ...] = ()

    def with_batch_size(self, batch_size: int) -> LinearTraining:
        """The same hyperparameters for another batch size, with LR scaled in proportion."""
        return replace(self, lr=self.lr * batch_size / self.batch_size, batch_size=batch_size)

    def lr_at(self, epoch: int) -> float:
        if not self.milestones:
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        lr = self.lr
        for milestone in self.milestones:
            lr *= 0.1 if epoch >= milestone * self.epochs else 1
        return lr


FAST = LinearTraining("SGD", lr=30.0, batch_size=512, epochs=100, milestones=(0.6, 0.8))


@dataclass(frozen=True)
class LinearProtocol:
    """A protocol by name (``fast`` or ``published``), and values that override it; None: the protocol's value.

    ``cached_views``: the features of so many views of each image are computed once, and epochs use them in turn; None
    or 0: each epoch makes a new view of each image.

    >>> from ssql_det.ssl.augmentations import build_augmentation
    >>> LinearProtocol("published", epochs=10).build_training(build_augmentation("cifar"), 512)
    LinearTraining(optimizer='SGD', lr=30.0, batch_size=512, epochs=10, milestones=(0.6, 0.8))
    """

    name: str = "fast"
    epochs: int | None = None
    batch_size: int | None = None
    cached_views: int | None = None

    def __post_init__(self) -> None:
        if self.cached_views and not self.is_published:
            raise UserError("--cached-views needs --protocol published; the fast protocol has no augmented views")

    @property
    def is_published(self) -> bool:
        return self.name == "published"

    def build_training(self, augmentation: Augmentation, feature_dim: int) -> LinearTraining:
        training = FAST
        if self.is_published and augmentation.name == "imagenet":
            lr = 2.4 if feature_dim >= _BOTTLENECK_DIM else 0.8
            training = LinearTraining("LARS", lr=lr, batch_size=2048, epochs=60)
        training = replace(training, epochs=self.epochs or training.epochs)
        return training.with_batch_size(self.batch_size or training.batch_size)

    def adapt_augmentation(self, augmentation: Augmentation) -> Augmentation:
        """The augmentation with the protocol's image and test transforms. Probes never use the batch transform."""
        return _use_published_transforms(augmentation) if self.is_published else augmentation

    def to_row_fields(self, training: LinearTraining) -> dict[str, str | int | float]:
        """The fields that rows of results store about the linear protocol."""
        fields: dict[str, str | int | float] = {
            "linear": self.name,
            "optimizer": training.optimizer,
            "rate": training.lr,
            "batch": training.batch_size,
            "epochs": training.epochs,
        }
        return fields | ({"cached_views": self.cached_views} if self.cached_views else {})


def knn_accuracy(
    gallery: Tensor, gallery_labels: Tensor, query: Tensor, query_labels: Tensor, k: int = NUM_NEIGHBOURS
) -> float:
    """Top-1 accuracy, in percent, of a weighted vote of the k nearest gallery features by cosine similarity (Wu et al.,
    CVPR 2018).

    >>> gallery, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> knn_accuracy(gallery, labels, torch.tensor([[1.0, 0.1], [1.0, 0.2]]), labels, k=1)
    50.0
    """
    gallery, query = F.normalize(gallery, dim=1), F.normalize(query, dim=1)
    num_classes = int(gallery_labels.max()) + 1
    correct = 0
    for features, labels in zip(query.split(1024), query_labels.split(1024), strict=True):
        similarities, nearest = (features @ gallery.T).topk(min(k, len(gallery)), dim=1)
        votes = torch.zeros(len(features), num_classes)
        votes.scatter_add_(1, gallery_labels[nearest], (similarities / TEMPERATURE).exp())
        correct += int((votes.argmax(1) == labels).sum())
    return 100 * correct / len(query_labels)


def linear_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    training: LinearTraining = FAST,
) -> float:
    """Top-1 accuracy, in percent, of a linear layer trained on features of images without augmentation.

    Features are scaled to a mean norm of 1, so that one learning rate works for all networks.

    >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> linear_accuracy(features, labels, features, labels)
    100.0
    """
    scale = train_features.norm(dim=1).mean().clamp(min=1e-12)
    train_features, test_features = train_features / scale, test_features / scale
    layer = init_layer(train_features.shape[1], int(train_labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    train_layer(layer, lambda batches: (train_features[indices] for _, indices in batches), train_labels, training)
    return top1_accuracy(layer, test_features, test_labels)


def linear_accuracy_on_views(
    train_features: FeatureLoader,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    training: LinearTraining,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Top-1 accuracy, in percent, of a linear layer trained on unscaled features of augmented views, as published."""
    layer = init_layer(test_features.shape[1], int(train_labels.max()) + 1, seed).to(device)
    train_layer(layer, train_features, train_labels, training, seed)
    return top1_accuracy(layer, test_features, test_labels)


def init_layer(feature_dim: int, num_classes: int, seed: int = 0) -> nn.Linear:
    """A linear layer with torch's default initialization, drawn by the seed."""
    with seeded_rng(seed, "layer"):
        return nn.Linear(feature_dim, num_classes)


def train_layer(
    layer: nn.Linear, features: FeatureLoader, labels: Tensor, training: LinearTraining, seed: int = 0
) -> None:
    """Train with cross entropy and without weight decay; the seed determines the order of images in each epoch."""
    training, device = training.with_batch_size(min(training.batch_size, len(labels))), layer.weight.device
    optimizer = _OPTIMIZERS[training.optimizer](layer.parameters(), lr=training.lr, momentum=0.9)
    sample = partial(_sample_batches, len(labels), training, seed)
    steps = training.epochs * -(-len(labels) // training.batch_size)
    batches = zip(sample(), features(sample()), strict=True)  # sample() gives the same batches each time
    for (epoch, indices), batch_features in track(batches, "training a linear layer", steps):
        optimizer.param_groups[0]["lr"] = training.lr_at(epoch)
        optimizer.zero_grad()
        F.cross_entropy(layer(batch_features.to(device)), labels[indices].to(device)).backward()
        optimizer.step()


def _sample_batches(num_images: int, training: LinearTraining, seed: int) -> Iterator[EpochBatch]:
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(training.epochs):
        for indices in torch.randperm(num_images, generator=generator).split(training.batch_size):
            yield epoch, indices


@torch.no_grad()
def top1_accuracy(layer: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of the layer, in percent."""
    predicted = layer(features.to(layer.weight.device)).argmax(1).cpu()
    return 100 * int((predicted == labels).sum()) / len(labels)


def _use_published_transforms(augmentation: Augmentation) -> Augmentation:
    size, name = augmentation.size, augmentation.name
    interpolation = InterpolationMode.BICUBIC if name == "cifar" else InterpolationMode.BILINEAR
    min_scale = 0.08 if name == "imagenet" else 0.8
    crop = v2.RandomResizedCrop(size, scale=(min_scale, 1), ratio=(3 / 4, 4 / 3), interpolation=interpolation)
    flips = [] if name == "digits" else [v2.RandomHorizontalFlip()]
    augmentation = replace(augmentation, image_transform=v2.Compose([crop, *flips, v2.PILToTensor()]))
    if name != "cifar":
        return augmentation
    resize = v2.Resize(size * 8 // 7, interpolation=interpolation)
    return replace(augmentation, test_transform=v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()]))
