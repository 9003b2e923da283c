"""How a linear probe shows images and trains its layer: fast, or as SSQL's published code does it.

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

from dataclasses import dataclass, replace

from torchvision.transforms import InterpolationMode, v2

from ssql_det.core.errors import UserError
from ssql_det.pretrain.layer import Training
from ssql_det.ssl.views import Recipe

FAST = Training("SGD", 30.0, 512, 100, (0.6, 0.8))
_WIDE = 2048  # features of a ResNet of bottlenecks


@dataclass(frozen=True)
class Protocol:
    """What is said of a linear probe; ``None``: as the protocol has it. ``cached_views`` of each image stand for all
    that the published one would make.

    >>> Protocol("published", epochs=10).training(recipe("cifar"), 512)
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

    def training(self, recipe: Recipe, width: int) -> Training:
        """Of a layer on features of this width."""
        training = FAST
        if self.is_published and recipe.name == "imagenet":
            training = Training("LARS", 2.4 if width >= _WIDE else 0.8, 2048, 60)
        return replace(training, epochs=self.epochs or training.epochs).at_batch(self.batch or training.batch)

    def shown(self, recipe: Recipe) -> Recipe:
        """The recipe with the protocol's frame and plain way; a recipe's look is not a probe's."""
        return _as_published(recipe) if self.is_published else recipe

    def described(self, training: Training) -> dict[str, str | int | float]:
        """As rows have it."""
        how: dict[str, str | int | float] = {"linear": self.name, "optimizer": training.optimizer}
        how |= {"rate": training.rate, "batch": training.batch, "epochs": training.epochs}
        return how | ({"cached_views": self.cached_views} if self.cached_views else {})


def _as_published(recipe: Recipe) -> Recipe:
    size, name = recipe.size, recipe.name
    resampling = InterpolationMode.BICUBIC if name == "cifar" else InterpolationMode.BILINEAR
    least = 0.08 if name == "imagenet" else 0.8
    crop = v2.RandomResizedCrop(size, scale=(least, 1), ratio=(3 / 4, 4 / 3), interpolation=resampling)
    flips = [] if name == "digits" else [v2.RandomHorizontalFlip()]
    recipe = replace(recipe, frame=v2.Compose([crop, *flips, v2.PILToTensor()]))
    if name != "cifar":
        return recipe
    whole = v2.Resize(size * 8 // 7, interpolation=resampling)
    return replace(recipe, plain=v2.Compose([whole, v2.CenterCrop(size), v2.PILToTensor()]))
