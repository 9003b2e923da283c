"""Augmentations that turn an image into a view: random ones for pretraining, and the deterministic test transform.

===============  =======================================================================================
image_transform  per image, in the data loader: random crop and flip, drawn from torch's global generator
                 (``digits``: only a resize)
batch_transform  per batch, on any device: all the rest; a pure function of images and random numbers
test_transform   per image, deterministic: resize and centre crop
===============  =======================================================================================

The random numbers of ``batch_transform`` depend only on the seed, the view and the position of an image in the training
(:func:`draw_random_numbers`), and images of a batch are transformed independently. So batch size, resuming and the
number of processes do not change a view.

``cifar`` and ``imagenet`` are the augmentations of SSQL's published configs, which are SimSiam's and MoCo v2's: crop,
flip, colour jitter in random order, random grayscale, and for ``imagenet`` random blur. ``digits`` is for crops of
handwriting, which a flip would turn into other characters: a small scale, shift and rotation, and two random colours.
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

from ssql_det.convert.metadata import CIFAR, IMAGENET, InputFormat
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.rng import derive_seed

SIZES = {"cifar": 32, "digits": 32, "imagenet": 224}  # default side of a view, in pixels

# How many random numbers each step of a batch transform uses, per image.
_PHOTO_COUNTS = (3, 4, 4, 1)  # whether to jitter, gray and blur; order of the jitter; its factors; sigma of the blur
# Rotation, scale, 2 shifts; 2 RGB colours; polarity, gray, sigma of the noise. The noise needs 1 more per pixel value.
_DIGIT_COUNTS = (4, 6, 3)
# Factors of brightness, contrast and saturation; the rotation of the hue, in turns.
_JITTER_RANGES = ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))
_MIN_CONTRAST = 90 / 255  # between the colours of digit and background, in luma
_MAX_NOISE = 8 / 255  # the greatest standard deviation of the noise; each image has its own


@dataclass(frozen=True)
class Augmentation:
    """The transforms that make views, and the test transform.

    ``image_transform`` and ``test_transform`` return [3, size, size] with values 0 to 255. ``batch_transform`` takes a
    batch from ``image_transform``, on any device, and ``num_random_numbers`` per image, on the CPU, and returns views
    in the ``input_format``. What the numbers decide is decided on the CPU, so that no GPU is waited for.

    >>> from PIL import Image
    >>> cifar = build_augmentation("cifar")
    >>> cropped = torch.stack([cifar.image_transform(Image.new("RGB", (60, 40))) for _ in range(4)])
    >>> cropped.shape, cropped.dtype
    (torch.Size([4, 3, 32, 32]), torch.uint8)
    >>> random_numbers = draw_random_numbers(seed, range(4), 0, cifar.num_random_numbers)
    >>> cifar.batch_transform(cropped, random_numbers).dtype  # normalized
    torch.float32
    """

    name: str
    size: int  # side of a view, in pixels
    input_format: InputFormat
    image_transform: Callable[[Image], Tensor]
    batch_transform: Callable[[Tensor, Tensor], Tensor]
    num_random_numbers: int
    test_transform: Callable[[Image], Tensor]


def build_augmentation(name: str, size: int | None = None) -> Augmentation:
    """``cifar``, ``digits`` or ``imagenet``, for views of ``size`` x ``size`` pixels.

    >>> build_augmentation("imagenet").size, build_augmentation("imagenet", 96).size
    (224, 96)
    """
    if name not in SIZES:
        raise UserError(f"unknown augmentation {name!r}{did_you_mean(name, SIZES)} (known: {', '.join(SIZES)})")
    size = SIZES[name] if size is None else size
    if size < 1:
        raise UserError(f"augmentation {name!r}: the size of views must be 1 pixel or more, got {size}")
    if name == "digits":
        resize = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
        return Augmentation(name, size, IMAGENET, resize, augment_digits, sum(_DIGIT_COUNTS) + 3 * size**2, resize)
    crop = v2.RandomResizedCrop(size, scale=(0.2, 1), ratio=(3 / 4, 4 / 3))
    image_transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    short_side = size if name == "cifar" else round(size * 256 / 224)
    test_transform = v2.Compose([v2.Resize(short_side), v2.CenterCrop(size), v2.PILToTensor()])
    input_format = CIFAR if name == "cifar" else IMAGENET
    batch_transform = partial(augment_photos, input_format=input_format, has_blur=name == "imagenet")
    return Augmentation(name, size, input_format, image_transform, batch_transform, sum(_PHOTO_COUNTS), test_transform)


def draw_random_numbers(seed: int, positions: Iterable[int] | Tensor, view: int, count: int) -> Tensor:
    """Uniform random numbers in [0, 1), [N, count]; each row depends only on the seed, the image's position in the
    training and the index of the view. Positions and views count from 0.

    >>> torch.equal(draw_random_numbers(0, [5, 6, 7], 1, 12)[1:2], draw_random_numbers(0, [6], 1, 12))
    True
    """
    # "look" separates this seed from the one of image_transform, which is derived from the same three values.
    seeds = [derive_seed(seed, int(position), view, "look") for position in positions]
    random_numbers = torch.empty(len(seeds), count)
    for row, row_seed in zip(random_numbers, seeds, strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(row_seed))
    return random_numbers


def normalize(images: Tensor, input_format: InputFormat) -> Tensor:
    """Convert RGB images [..., 3, H, W] with values 0 to 255 to a network's channel order and normalization.

    >>> from ssql_det.convert import IMAGENET
    >>> normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), IMAGENET).flatten()
    tensor([2.2489, 2.4286, 2.6400])
    """
    if input_format.channels == "BGR":
        images = images.flip(-3)
    dtype = torch.promote_types(images.dtype, torch.float32)
    mean, std = (
        torch.tensor(values, dtype=dtype).view(3, 1, 1).to(images.device, non_blocking=True)
        for values in (input_format.mean, input_format.std)
    )
    return (images - mean).div_(std)


def augment_photos(images: Tensor, random_numbers: Tensor, input_format: InputFormat, has_blur: bool) -> Tensor:
    """Colour jitter (p = .8), grayscale (p = .2), with ``has_blur`` Gaussian blur (p = .5), normalization.

    ``images`` have values 0 to 255; ``random_numbers`` are [N, 12], on the CPU, in the order of ``_PHOTO_COUNTS``.
    """
    device = images.device
    chances, ranks, strengths, sigmas = random_numbers.split(_PHOTO_COUNTS, dim=1)
    jitter_chance, gray_chance, blur_chance = chances.unbind(1)
    orders = ranks.argsort(dim=1, stable=True).where(jitter_chance[:, None] < 0.8, -1)
    low, high = torch.tensor(_JITTER_RANGES).unbind(1)
    views = colour_jitter(images / 255, orders, (low + (high - low) * strengths).to(device, non_blocking=True))
    gray = _find(gray_chance < 0.2, device)
    views.index_copy_(0, gray, to_grayscale(views.index_select(0, gray)).expand(-1, 3, -1, -1))
    if has_blur:
        is_blurred = blur_chance < 0.5
        blurred = _find(is_blurred, device)
        radius = images.shape[-1] // 20  # the kernel covers a tenth of the image's side, as in SimCLR
        blur_sigmas = (0.1 + 1.9 * sigmas[is_blurred, 0]).to(device, non_blocking=True)
        views.index_copy_(0, blurred, gaussian_blur(views.index_select(0, blurred), blur_sigmas, radius))
    return normalize(views.mul_(255), input_format)


def augment_digits(images: Tensor, random_numbers: Tensor) -> Tensor:
    """Rotation, scale and shift, two random colours, noise, grayscale (p = .2), normalization.

    ``images`` have values 0 to 255; ``random_numbers`` are in the order of ``_DIGIT_COUNTS``, then those of the noise.
    """
    random_numbers = random_numbers.to(images.device, non_blocking=True)
    geometry, colours, chances, noise = random_numbers.split((*_DIGIT_COUNTS, images.shape[1:].numel()), dim=1)
    polarity_chance, gray_chance, noise_strength = chances.unbind(1)
    views = recolour(affine(images / 255, geometry), colours, polarity_chance < 0.5)
    # Inverse transform sampling of normal noise. The clamp avoids erfinv(-1), which is infinite.
    normal = math.sqrt(2) * torch.erfinv((2 * noise - 1).clamp(min=-1 + 2**-23)).view_as(views)
    views = (views + _per_image(_MAX_NOISE * noise_strength) * normal).clamp(0, 1)
    return normalize(torch.where(_per_image(gray_chance < 0.2), to_grayscale(views), views) * 255, IMAGENET)


# The functions below take and return RGB images [N, 3, H, W] with values 0 to 1; ``factors`` [N] has one per image.


def to_grayscale(images: Tensor) -> Tensor:
    """[N, 1, H, W], with torchvision's weights, whose sum is .9999."""
    red, green, blue = images.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (images * _per_image(factors)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    # Mean over rows, then columns: torch would split one sum over all pixels of an image among threads, which rounds it
    # differently than for a batch.
    return _blend(images, to_grayscale(images).mean(3, keepdim=True).mean(2, keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, to_grayscale(images), factors)


def adjust_hue(images: Tensor, factors: Tensor) -> Tensor:
    """Rotate the hue by ``factors`` of a full turn. Chroma and minimum stay, so no conversion to HSV is needed."""
    red, green, blue = images.split(1, dim=1)
    minimum, maximum = images.amin(1, keepdim=True), images.amax(1, keepdim=True)
    chroma = maximum - minimum
    divisor = chroma.clamp(min=1e-12)
    hue_if_not_red = torch.where(maximum == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(maximum == red, (green - blue) / divisor, hue_if_not_red)  # in sixths of a turn
    hue = (hue + _per_image(6 * factors)).remainder_(6)
    channels = [(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()]
    return torch.cat(channels, dim=1).clamp_(0, 1).mul_(chroma).add_(minimum)


def colour_jitter(images: Tensor, orders: Tensor, factors: Tensor) -> Tensor:
    """Adjust brightness (0), contrast (1), saturation (2) and hue (3) by ``factors`` [N, 4], in the order ``orders``
    [N, 4] of each image, which are on the CPU; -1 skips an adjustment."""
    images = images.clone()
    for order in orders.unbind(1):
        for adjustment, adjust in enumerate((adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)):
            selected = _find(order == adjustment, images.device)
            adjusted = adjust(images.index_select(0, selected), factors[selected, adjustment])
            images.index_copy_(0, selected, adjusted)
    return images


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Blur square images, with sigmas [N] and a radius of the kernel in pixels. By matrix products, because some GPUs
    round the inputs of convolutions to 10 mantissa bits."""
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-((offsets / sigmas[:, None]) ** 2) / 2, dim=1)
    identity = torch.eye(images.shape[-1], device=images.device)[None]
    windows = F.pad(identity, (radius, radius), mode="reflect")[0].unfold(1, len(offsets), 1)
    matrix = torch.einsum("no,pio->nip", weights, windows)[:, None]
    return matrix @ images @ matrix.transpose(2, 3)


def affine(images: Tensor, random_numbers: Tensor) -> Tensor:
    """Rotate by up to 15 degrees, scale by .8 to 1.1 and shift by up to a tenth of a side, by random numbers [N, 4]."""
    rotation, scale, *shifts = random_numbers.unbind(1)
    angle, zoom = math.radians(15) * (2 * rotation - 1), 0.8 + 0.3 * scale
    shift_x, shift_y = (0.2 * (2 * shift - 1) for shift in shifts)  # in affine_grid's coordinates an image is 2 wide
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # "border" padding, because reflection would add strokes to the digit.
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def recolour(images: Tensor, colours: Tensor, keep_polarity: Tensor) -> Tensor:
    """Replace dark and light by two random ``colours`` [N, 6]; dark becomes light where ``keep_polarity`` [N] is False.

    The darker colour is moved towards black and the lighter towards white, to differ by a minimum contrast.
    """
    luma = to_grayscale(images)
    low, high = luma.amin((2, 3), keepdim=True), luma.amax((2, 3), keepdim=True)
    lightness = (luma - low) / (high - low).clamp(min=1 / 255)  # a flat image stays flat, despite rounding errors
    first, second = colours.view(-1, 2, 3, 1, 1).unbind(1)
    is_first_lighter = to_grayscale(first) > to_grayscale(second)
    dark = (1 - _MIN_CONTRAST) * torch.where(is_first_lighter, second, first)
    light = (1 - _MIN_CONTRAST) * torch.where(is_first_lighter, first, second) + _MIN_CONTRAST
    return dark + torch.where(_per_image(keep_polarity), lightness, 1 - lightness) * (light - dark)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Interpolate between ``others`` (factor 0) and ``images`` (factor 1); factors above 1 extrapolate."""
    factors = _per_image(factors)
    return (factors * images + (1 - factors) * others).clamp_(0, 1)


def _find(mask: Tensor, device: torch.device) -> Tensor:
    """The indices where a mask on the CPU is True. A GPU would have to be asked how many images its mask has."""
    return mask.nonzero().flatten().to(device, non_blocking=True)


def _per_image(values: Tensor) -> Tensor:
    """Reshape values [N] so that they broadcast over images [N, C, H, W]."""
    return values.view(-1, 1, 1, 1)
