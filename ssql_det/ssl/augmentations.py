"""What is done to an image before a network sees it: twice at random in pretraining, and once plainly in tests.

=====  =================================================================================================
frame  per image, where it is loaded: which part of it, turned or not; draws from torch's own generator
look   per batch, on any device: its colours; a pure function of the images and of numbers from 0 to 1
plain  per image, nothing at random
=====  =================================================================================================

The numbers of a look (:func:`draw_random_numbers`) follow from the place of a sample alone, and no row of a batch sees another:
so neither the size of a batch, nor a resumed run, nor the number of processes changes what a sample looks like.

``cifar`` and ``imagenet`` are those of SSQL's published configs, which are SimSiam's (and MoCo v2's): a crop, a flip,
brightness, contrast, saturation and hue in any order, at times gray, and for ``imagenet`` at times blurred. ``digits``
is for crops of handwriting, which a flip would turn into other signs: a small shift and turn, and two colours for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import v2

from ssql_det.convert.checkpoint import CIFAR, IMAGENET, InputFormat
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.rng import derive_seed

SIZES = {"cifar": 32, "digits": 32, "imagenet": 224}

# How many numbers a look takes for each of its parts.
_PHOTO_PARTS = (3, 4, 4, 1)  # jitter, gray or blur at all; order; factors; the blur's sigma
_DIGIT_PARTS = (4, 6, 3)  # turn, scale, shift; two colours; polarity, gray, the noise's sigma; then the noise
_FACTORS = ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))  # of brightness, contrast, saturation and hue
_LEAST_CONTRAST = 90 / 255  # between the colours of digit and background, in luma
_MOST_NOISE = 8 / 255


@dataclass(frozen=True)
class Augmentation:
    """How views are made. ``draws`` is how many numbers ``look`` takes for a sample; ``input`` is what it gives.

    >>> cifar = build_augmentation("cifar")
    >>> with seeded_rng(seed, position, view):
    ...     framed = cifar.image_transform(image)  # PIL, RGB -> uint8 [3, 32, 32]
    >>> cifar.batch_transform(batch, draw_random_numbers(seed, positions, view, cifar.num_random_numbers))  # uint8 [N, 3, 32, 32] -> float, normalized
    >>> normalize(cifar.test_transform(image), cifar.input)  # to test with
    """

    name: str
    size: int
    input: InputFormat
    image_transform: Callable[[Image], Tensor]
    batch_transform: Callable[[Tensor, Tensor], Tensor]
    num_random_numbers: int
    test_transform: Callable[[Image], Tensor]


def build_augmentation(name: str, size: int | None = None) -> Augmentation:
    """``cifar``, ``digits`` or ``imagenet``, for images of ``size`` pixels a side.

    >>> build_augmentation("imagenet").size, build_augmentation("imagenet", 96).size
    (224, 96)
    """
    if name not in SIZES:
        raise UserError(f"there is no recipe {name!r}{did_you_mean(name, SIZES)} (known: {', '.join(SIZES)})")
    size = SIZES[name] if size is None else size
    if size < 1:
        raise UserError(f"the views of recipe {name!r} must have at least 1 pixel a side, got {size}")
    if name == "digits":
        squeeze = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
        return Augmentation(name, size, IMAGENET, squeeze, augment_digits, sum(_DIGIT_PARTS) + 3 * size**2, squeeze)
    crop = v2.RandomResizedCrop(size, scale=(0.2, 1), ratio=(3 / 4, 4 / 3))
    frame = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    short_side = size if name == "cifar" else round(size * 256 / 224)
    plain = v2.Compose([v2.Resize(short_side), v2.CenterCrop(size), v2.PILToTensor()])
    images = CIFAR if name == "cifar" else IMAGENET
    look = partial(augment_photos, input=images, blurred=name == "imagenet")
    return Augmentation(name, size, images, frame, look, sum(_PHOTO_PARTS), plain)


def draw_random_numbers(seed: int, positions: Iterable[int] | Tensor, view: int, count: int) -> Tensor:
    """Numbers from 0 to 1 (without 1) [N, count]; each row follows from the seed, its position and the view alone.

    >>> torch.equal(draw_random_numbers(0, [5, 6, 7], 1, 12)[1:2], draw_random_numbers(0, [6], 1, 12))
    True
    """
    # "look": the frame's choices come from the same place, and must not go along with these.
    seeds = [derive_seed(seed, int(position), view, "look") for position in positions]
    draws = torch.empty(len(seeds), count)
    for row, own in zip(draws, seeds, strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(own))
    return draws


def normalize(images: Tensor, input: InputFormat) -> Tensor:
    """RGB images [..., 3, H, W] of values 0 to 255, as a network of this input takes them."""
    if input.channels == "BGR":
        images = images.flip(-3)
    kind = torch.promote_types(images.dtype, torch.float32)
    mean, std = (torch.tensor(each, dtype=kind, device=images.device).view(3, 1, 1) for each in (input.mean, input.std))
    return (images - mean) / std


def augment_photos(images: Tensor, draws: Tensor, input: InputFormat, blurred: bool) -> Tensor:
    """Jittered (.8), then gray (.2), then, where the recipe has it, blurred (.5)."""
    chances, ranks, amounts, sigmas = draws.split(_PHOTO_PARTS, dim=1)
    jitters, grays, blurs = chances.unbind(1)
    orders = ranks.argsort(dim=1, stable=True).where(jitters[:, None] < 0.8, -1)
    least, most = torch.tensor(_FACTORS, device=draws.device).unbind(1)
    looks = colour_jitter(images / 255, orders, least + (most - least) * amounts)
    looks = torch.where(_per_image(grays < 0.2), to_grayscale(looks), looks)
    if blurred:
        chosen = blurs < 0.5
        radius = images.shape[-1] // 20  # a kernel of a tenth of the image, as in SimCLR
        looks[chosen] = gaussian_blur(looks[chosen], 0.1 + 1.9 * sigmas[chosen, 0], radius)
    return normalize(looks * 255, input)


def augment_digits(images: Tensor, draws: Tensor) -> Tensor:
    """Turned and shifted, in two colours, with some noise, then gray (.2)."""
    places, colours, rest, noise = draws.split((*_DIGIT_PARTS, images.shape[1:].numel()), dim=1)
    polarities, grays, sigmas = rest.unbind(1)
    looks = recolour(affine(images / 255, places), colours, polarities < 0.5)
    # The noise is the normal distribution's quantile of each number; that of 0 itself would be infinite.
    bells = math.sqrt(2) * torch.erfinv((2 * noise - 1).clamp(min=-1 + 2**-23)).view_as(looks)
    looks = (looks + _per_image(_MOST_NOISE * sigmas) * bells).clamp(0, 1)
    return normalize(torch.where(_per_image(grays < 0.2), to_grayscale(looks), looks) * 255, IMAGENET)


# What follows takes and gives RGB images [N, 3, H, W] of values 0 to 1, and a factor for each image, [N].


def to_grayscale(images: Tensor) -> Tensor:
    """[N, 1, H, W], with torchvision's weights, whose sum is .9999."""
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * _per_image(factors)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    # Along lines first: threads share the sum over a whole image when it is alone, and round it otherwise.
    return _blended(images, to_grayscale(images).mean(3, keepdim=True).mean(2, keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blended(images, to_grayscale(images), factors)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """By a share of the whole circle, without the way over saturation: chroma and the darkest channel stay."""
    red, green, blue = images.split(1, dim=1)
    dark, light = images.amin(1, keepdim=True), images.amax(1, keepdim=True)
    chroma = light - dark
    some = chroma.clamp(min=1e-12)
    of_blue = torch.where(light == green, 2 + (blue - red) / some, 4 + (red - green) / some)
    sixths = torch.where(light == red, (green - blue) / some, of_blue)
    sixths = (sixths + _per_image(6 * turns)).remainder_(6)
    ramps = [(sixths - 3).abs_() - 1, 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_()]
    return torch.cat(ramps, dim=1).clamp_(0, 1).mul_(chroma).add_(dark)


def colour_jitter(images: Tensor, orders: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, numbered 0 to 3, in each image's order [N, 4] (-1: none of them)."""
    images = images.clone()
    for order in orders.unbind(1):
        for number, adjust in enumerate((adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)):
            chosen = order == number
            images[chosen] = adjust(images[chosen], factors[chosen, number])
    return images


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Gaussian, [N, 3, S, S]. As a matrix product: a convolution would be rounded to ten bits on some GPUs."""
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-((offsets / sigmas[:, None]) ** 2) / 2, dim=1)
    points = torch.eye(images.shape[-1], device=images.device)[None]
    windows = F.pad(points, (radius, radius), mode="reflect")[0].unfold(1, len(offsets), 1)
    spread = torch.einsum("no,pio->nip", weights, windows)[:, None]  # where each point goes
    return spread @ images @ spread.transpose(2, 3)


def affine(images: Tensor, places: Tensor) -> Tensor:
    """Turned by up to 15 degrees, scaled by .8 to 1.1 and shifted by up to a tenth, by numbers [N, 4] from 0 to 1."""
    turn, scale, *shifts = places.unbind(1)
    angle, zoom = math.radians(15) * (2 * turn - 1), 0.8 + 0.3 * scale
    across, down = (0.2 * (2 * shift - 1) for shift in shifts)  # affine_grid measures the side as 2
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack([cos, -sin, across, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # "border": a reflection would put strokes of the digit where there were none.
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def recolour(images: Tensor, colours: Tensor, kept: Tensor) -> Tensor:
    """In two colours [N, 6], one moved towards black and one towards white; ``kept`` [N]: what is dark stays so."""
    luma = to_grayscale(images)
    low, high = luma.amin((2, 3), keepdim=True), luma.amax((2, 3), keepdim=True)
    share = (luma - low) / (high - low).clamp(min=1 / 255)  # a flat image stays flat, for all its rounding errors
    first, second = colours.view(-1, 2, 3, 1, 1).unbind(1)
    turned = to_grayscale(first) > to_grayscale(second)
    dark = (1 - _LEAST_CONTRAST) * torch.where(turned, second, first)
    light = (1 - _LEAST_CONTRAST) * torch.where(turned, first, second) + _LEAST_CONTRAST
    return dark + torch.where(_per_image(kept), share, 1 - share) * (light - dark)


def _blended(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Images at a factor of 1, the others at 0, and beyond."""
    shares = _per_image(factors)
    return (shares * images + (1 - shares) * others).clamp_(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
