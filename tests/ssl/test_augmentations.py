"""Augmentations: adjustments against torchvision's, batch transforms against a loop, image transforms by property."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from ssql_det.convert.metadata import CIFAR, IMAGENET, MSRA
from ssql_det.core.errors import UserError
from ssql_det.core.rng import seeded_rng
from ssql_det.ssl import augmentations
from ssql_det.ssl.augmentations import build_augmentation, draw_random_numbers, normalize

NAMES = ("cifar", "digits", "imagenet")
ADJUSTMENTS = {
    "brightness": V.adjust_brightness,
    "contrast": V.adjust_contrast,
    "saturation": V.adjust_saturation,
    "hue": V.adjust_hue,
}
JITTERED, GRAYED, BLURRED, SIGMA = 0, 1, 2, 11  # columns of a photo's random numbers
POLARITY, GRAYED_DIGIT, NOISE = 10, 11, 12  # and of a digit's
NEVER = 0.999


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_images(side=12):
    """Float images [n, 3, side, side] with values 0 to 1, by name."""
    random = torch.rand(8, 3, side, side, generator=generator())
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    return {
        "random": random,
        "black": torch.zeros(1, 3, side, side),
        "white": torch.ones(1, 3, side, side),
        "flat gray": torch.full((1, 3, side, side), 0.3),
        "gray": random[:, :1].expand(-1, 3, -1, -1),
        "nearly gray": random[:, :1] * 0.9 + random / 255,
        "two channels alike": torch.cat([random[:, :1], random[:, 1:2], random[:, 1:2]], dim=1),
        "of eight colours": corners[torch.randint(8, (8, side, side), generator=generator())].permute(0, 3, 1, 2),
        "of one colour": corners.view(8, 3, 1, 1).expand(-1, -1, side, side),
        "of 256 levels": (random * 255).round() / 255,
        "dark": random / 255,
    }


def random_images(count, side, seed=0):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator(seed))


def coloured_images(count, side):
    """No channel is like another, so none is gray, and nothing is clamped."""
    return torch.tensor([60, 120, 160], dtype=torch.uint8).view(1, 3, 1, 1) + random_images(count, side) // 16


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def draw(augmentation, count, view=0):
    return draw_random_numbers(0, range(count), view, augmentation.num_random_numbers)


def denormalize(images, input):
    """Normalized images as values 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (input.mean, input.std))
    return images * std + mean


# Adjustments


@pytest.mark.parametrize("name", ADJUSTMENTS)
@pytest.mark.parametrize("kind", make_images())
def test_an_adjustment_equals_torchvisions(name, kind):
    images = make_images()[kind]
    ends = [-0.5, -1 / 3, 0, 1 / 6, 0.5] if name == "hue" else [0, 0.6, 1, 1.4, 3]
    drawn = torch.rand(20, generator=generator(1)) * (1 if name == "hue" else 2) - (0.5 if name == "hue" else 0)
    for factors in [torch.full((len(images),), end) for end in ends] + list(drawn.repeat(8).view(20, 8)):
        factors = factors[: len(images)]
        expected = [ADJUSTMENTS[name](image, float(factor)) for image, factor in zip(images, factors, strict=True)]
        assert_close(getattr(augmentations, f"adjust_{name}")(images, factors), torch.stack(expected))


@pytest.mark.parametrize("kind", make_images())
def test_grayscale_equals_torchvisions(kind):
    images = make_images()[kind]
    assert_close(
        augmentations.to_grayscale(images).expand_as(images),
        V.rgb_to_grayscale(images, num_output_channels=3),
        atol=1e-6,
    )


@pytest.mark.parametrize(("side", "radius"), [(224, 11), (96, 4), (32, 1), (12, 11), (5, 0)])
def test_blur_equals_torchvisions_up_to_the_border(side, radius):
    sigmas = torch.tensor([0.1, 0.35, 0.8, 1.3, 2.0])
    images = torch.rand(len(sigmas), 3, side, side, generator=generator())
    size = [2 * radius + 1] * 2
    expected = [V.gaussian_blur(image, size, [float(s)] * 2) for image, s in zip(images, sigmas, strict=True)]
    assert_close(augmentations.gaussian_blur(images, sigmas, radius), torch.stack(expected))


def test_colour_jitter_follows_each_images_own_order():
    orders = torch.stack(
        [torch.randperm(4, generator=generator(row)) for row in range(30)] + [torch.full((4,), -1)] * 2
    )
    assert len(orders.unique(dim=0)) > 15
    images = torch.rand(len(orders), 3, 9, 9, generator=generator())
    factors = torch.rand(len(orders), 4, generator=generator(1)) * torch.tensor([2, 2, 2, 0.5])
    before = images.clone()
    expected = images.clone()
    adjustments = list(ADJUSTMENTS.values())
    for row, order in enumerate(orders.tolist()):
        for number in order:
            if number >= 0:
                expected[row] = adjustments[number](expected[row], float(factors[row, number]))
    assert_close(augmentations.colour_jitter(images, orders, factors), expected)
    assert torch.equal(images, before)


# Batch transforms


def augment_photo_slowly(image, numbers, augmentation):
    """One sample [3, S, S], in torchvision's words and in the order of the published code."""
    image = image / 255
    if numbers[JITTERED] < 0.8:
        brightness, contrast, saturation, hue = (2 * numbers[7:11] - 1).tolist()
        factors = [1 + 0.4 * brightness, 1 + 0.4 * contrast, 1 + 0.4 * saturation, 0.1 * hue]
        for number in np.argsort(numbers[3:7].numpy()):
            image = list(ADJUSTMENTS.values())[number](image, factors[number])
    if numbers[GRAYED] < 0.2:
        image = V.rgb_to_grayscale(image, num_output_channels=3)
    if augmentation.name == "imagenet" and numbers[BLURRED] < 0.5:
        kernel = augmentation.size // 10 | 1
        image = V.gaussian_blur(image, [kernel] * 2, [0.1 + 1.9 * float(numbers[SIGMA])] * 2)
    return V.normalize(
        image, [m / 255 for m in augmentation.input_format.mean], [s / 255 for s in augmentation.input_format.std]
    )


@pytest.mark.parametrize(("name", "size"), [("cifar", 32), ("imagenet", 64), ("imagenet", 224)])
def test_a_batch_transform_equals_that_of_each_image(name, size):
    augmentation = build_augmentation(name, size)
    count = 200 if size < 100 else 16
    images, random_numbers = random_images(count, size), draw(augmentation, count)
    expected = [
        augment_photo_slowly(image, numbers, augmentation)
        for image, numbers in zip(images, random_numbers, strict=True)
    ]
    # In units of std, a quarter of the range of values.
    assert_close(augmentation.batch_transform(images, random_numbers), torch.stack(expected), atol=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_transform_is_a_pure_function(name):
    augmentation = build_augmentation(name, 32)
    images, random_numbers = random_images(16, 32), draw(augmentation, 16)
    copies = images.clone(), random_numbers.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augmentation.batch_transform(images, random_numbers)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augmentation.batch_transform(images, random_numbers), first)
    assert torch.equal(images, copies[0])
    assert torch.equal(random_numbers, copies[1])
    assert not torch.equal(
        augmentation.batch_transform(images, draw(augmentation, 16, view=1)),
        first,
    )


@pytest.mark.parametrize(("name", "size"), [("cifar", 32), ("digits", 32), ("imagenet", 96)])
def test_images_of_a_batch_are_independent(name, size):
    augmentation = build_augmentation(name, size)
    images, random_numbers = random_images(24, size), draw(augmentation, 24)
    views = augmentation.batch_transform(images, random_numbers)
    for row in range(24):
        assert_close(
            augmentation.batch_transform(images[row : row + 1], random_numbers[row : row + 1])[0], views[row], atol=1e-6
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", make_images())
def test_views_are_finite_with_values_0_to_255(name, kind):
    augmentation = build_augmentation(name, 24)
    images = (make_images(24)[kind] * 255).to(torch.uint8)
    lowest, highest = (
        torch.zeros(augmentation.num_random_numbers),
        torch.full((augmentation.num_random_numbers,), 1 - 2**-24),
    )
    for random_numbers in (*draw(augmentation, 6), lowest, highest):
        views = augmentation.batch_transform(images, random_numbers.expand(len(images), -1))
        assert (views.shape, views.dtype) == (images.shape, torch.float32)
        values = denormalize(views, augmentation.input_format)
        assert -1e-3 <= values.min() <= values.max() <= 255 + 1e-3


def fraction(condition):
    return condition.float().mean().item()


def test_photos_are_jittered_gray_and_blurred_as_often_as_published():
    augmentation = build_augmentation("imagenet", 20)
    images, random_numbers = coloured_images(3000, 20), draw(augmentation, 3000)
    unaugmented = normalize(images, augmentation.input_format)

    def transform_without(*others):
        """What one choice alone does: the others are never result."""
        numbers = random_numbers.clone()
        numbers[:, list(others)] = NEVER
        numbers[:, SIGMA] = 0.5
        return augmentation.batch_transform(images, numbers)

    def is_changed(views):
        return (views - unaugmented).abs().amax((1, 2, 3)) > 1e-3

    grays = denormalize(transform_without(JITTERED, BLURRED), augmentation.input_format)
    assert fraction(is_changed(transform_without(GRAYED, BLURRED))) == pytest.approx(0.8, abs=0.025)
    assert fraction((grays[:, 0] - grays[:, 1]).abs().amax((1, 2)) < 1e-2) == pytest.approx(0.2, abs=0.025)
    assert fraction(is_changed(transform_without(JITTERED, GRAYED))) == pytest.approx(0.5, abs=0.03)
    assert fraction(is_changed(transform_without(JITTERED, GRAYED, BLURRED))) == 0


def test_a_fifth_of_the_digits_are_gray_and_half_have_inverted_polarity():
    augmentation = build_augmentation("digits", 8)
    random_numbers = draw(augmentation, 3000)
    views = denormalize(augmentation.batch_transform(coloured_images(3000, 8), random_numbers), IMAGENET)
    spread = (views.amax(1) - views.amin(1)).amax((1, 2))
    assert fraction(spread < 1e-2) == pytest.approx(0.2, abs=0.025)

    random_numbers[:, NOISE] = 0
    left_dark = torch.full((3000, 3, 8, 8), 200, dtype=torch.uint8)
    left_dark[..., :4] = 20
    luma = augmentations.to_grayscale(denormalize(augmentation.batch_transform(left_dark, random_numbers), IMAGENET))
    assert fraction(luma[:, 0, 4, 0] < luma[:, 0, 4, 7]) == pytest.approx(0.5, abs=0.03)


# Parts of the digits' transform


def test_digits_are_rotated_and_scaled_as_by_torchvision():
    image = torch.zeros(1, 3, 33, 33)
    image[..., 9:24, 9:24] = torch.rand(
        1, 3, 15, 15, generator=generator()
    )  # black all around, so padding does not matter
    for turn, degrees in ((0.0, 15.0), (0.5, 0.0), (1.0, -15.0)):
        for size, scale in ((0.0, 0.8), (2 / 3, 1.0), (1.0, 1.1)):
            random_numbers = torch.tensor([[turn, size, 0.5, 0.5]])
            expected = V.affine(image, degrees, [0, 0], scale, [0, 0], interpolation=InterpolationMode.BILINEAR)
            assert_close(augmentations.affine(image, random_numbers), expected, atol=1e-4)


def test_digits_are_shifted_by_a_tenth_with_border_padding():
    image = torch.rand(1, 3, 20, 20, generator=generator())
    still = torch.tensor([[0.5, 2 / 3, 0.5, 0.5]])
    assert_close(augmentations.affine(image, still), image)
    left = augmentations.affine(image, torch.tensor([[0.5, 2 / 3, 1.0, 0.5]]))
    assert_close(left[..., :18], image[..., 2:])
    assert_close(left[..., 18:], image[..., -1:].expand(-1, -1, -1, 2))
    down = augmentations.affine(image, torch.tensor([[0.5, 2 / 3, 0.5, 0.0]]))
    assert_close(down[..., 2:, :], image[..., :18, :])


def test_recolouring_keeps_a_minimum_contrast_and_the_polarity():
    images = torch.rand(500, 3, 6, 6, generator=generator())
    colours = torch.rand(500, 6, generator=generator(1))
    colours[:50, 3:] = colours[:50, :3]  # the same colour twice
    keep_polarity = torch.arange(500) % 2 == 0
    recoloured = augmentations.recolour(images, colours, keep_polarity)
    assert 0 <= recoloured.min() <= recoloured.max() <= 1 + 1e-6

    before, after = augmentations.to_grayscale(images).flatten(1), augmentations.to_grayscale(recoloured).flatten(1)
    contrast = after.amax(1) - after.amin(1)
    assert contrast.min() > 0.999 * 90 / 255
    assert_close(contrast[:50], torch.full((50,), 90 / 255), atol=1e-3)

    stretched = (before - before.amin(1, keepdim=True)) / (before.amax(1) - before.amin(1))[:, None]
    lightness = (after - after.amin(1, keepdim=True)) / contrast[:, None]
    assert_close(lightness, torch.where(keep_polarity[:, None], stretched, 1 - stretched), atol=1e-4)

    index, drawn = torch.arange(500), colours.view(500, 2, 3)
    luma = augmentations.to_grayscale(drawn.view(1000, 3, 1, 1)).view(500, 2)
    assert_close(recoloured.flatten(2)[index, :, after.argmin(1)], drawn[index, luma.argmin(1)] * 165 / 255)
    assert_close(recoloured.flatten(2)[index, :, after.argmax(1)], 1 - (1 - drawn[index, luma.argmax(1)]) * 165 / 255)


def test_noise_is_normal_with_the_drawn_strength():
    augmentation = build_augmentation("digits")
    flat = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    random_numbers = draw(augmentation, 40)
    random_numbers[:, :NOISE] = 0.5  # a flat image, in one colour
    for strength, deviation in ((0.0, 0.0), (0.5, 4.0), (1 - 2**-24, 8.0)):
        random_numbers[:, NOISE] = strength
        values = denormalize(augmentation.batch_transform(flat, random_numbers), IMAGENET)
        noise = values - values.mean((0, 2, 3), keepdim=True)
        assert noise.std() == pytest.approx(deviation, rel=0.02, abs=1e-3)
        if deviation:
            for beyond, expected in ((1.0, 0.3173), (1.96, 0.05), (3.0, 0.0027)):
                assert fraction(noise.abs() > beyond * deviation) == pytest.approx(expected, abs=0.005)
            assert np.corrcoef(noise.transpose(0, 1).flatten(1).numpy())[0, 1] == pytest.approx(0, abs=0.02)


# Random numbers


def test_random_numbers_depend_on_their_position_alone():
    whole = draw_random_numbers(3, range(20), 1, 40)
    assert torch.equal(draw_random_numbers(3, [17, 4, 11], 1, 40), whole[[17, 4, 11]])
    assert torch.equal(draw_random_numbers(3, torch.tensor([17, 4, 11]), 1, 40), whole[[17, 4, 11]])
    assert torch.equal(
        torch.cat([draw_random_numbers(3, range(first, first + 5), 1, 40) for first in (0, 5, 10, 15)]), whole
    )
    assert draw_random_numbers(3, [], 1, 40).shape == (0, 40)
    for other in (
        draw_random_numbers(4, range(20), 1, 40),
        draw_random_numbers(3, range(20), 0, 40),
        draw_random_numbers(3, range(20, 40), 1, 40),
    ):
        assert (other != whole).float().mean() > 0.999
    assert len(whole.unique()) > 790


def test_random_numbers_are_not_those_of_the_image_transform():
    with seeded_rng(3, 17, 1):
        of_image_transform = torch.rand(40)
    assert (draw_random_numbers(3, [17], 1, 40)[0] != of_image_transform).all()


def test_random_numbers_are_uniform_within_a_row_and_over_positions_and_views():
    def distance(values):
        """Kolmogorov and Smirnov's, times the root of the count: above 1.63 once in a hundred."""
        ordered, steps = values.flatten().sort().values, torch.arange(values.numel() + 1) / values.numel()
        return max((ordered - steps[:-1]).max(), (steps[1:] - ordered).max()).item() * math.sqrt(values.numel())

    random_numbers = draw_random_numbers(0, range(3000), 0, 12)
    assert 0 <= random_numbers.min() <= random_numbers.max() < 1
    assert distance(random_numbers) < 1.63
    assert all(distance(column) < 1.95 for column in random_numbers.unbind(1))
    assert distance(draw_random_numbers(0, [5], 0, 5000)) < 1.63
    both = torch.cat([random_numbers, draw_random_numbers(0, range(3000), 1, 12)], dim=1)
    off_diagonal = np.corrcoef(both.T.numpy()) - np.eye(24)
    assert np.abs(off_diagonal).max() < 0.08


# Image transforms and test transforms


def make_coordinate_image(side=256):
    """A PIL image whose red is the x coordinate of a pixel, and whose green the y coordinate."""
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    return Image.fromarray(np.stack([across, down, np.full_like(down, 128)], axis=2).astype(np.uint8))


def crop_image(augmentation, image, position, view=0):
    with seeded_rng(0, position, view):
        return augmentation.image_transform(image)


@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_crops_have_the_published_areas_and_half_are_flipped(name):
    augmentation, image = build_augmentation(name, 32), make_coordinate_image()
    crops = torch.stack([crop_image(augmentation, image, position) for position in range(500)]).float()
    widths = (crops[:, 0, 16, 24] - crops[:, 0, 16, 8]) * 2  # of 32 pixels, from what 16 span
    heights = (crops[:, 1, 24, 16] - crops[:, 1, 8, 16]) * 2
    areas, ratios = (widths * heights).abs() / 256**2, (widths / heights).abs()
    assert 0.18 < areas.min() < 0.23
    assert 0.92 < areas.max() < 1.05
    assert areas.mean() == pytest.approx(0.56, abs=0.05)
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.42
    assert fraction(widths < 0) == pytest.approx(0.5, abs=0.06)
    assert (heights > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_transformed_images_are_uint8_of_the_configured_size(name):
    augmentation = build_augmentation(name)
    for width, height in ((40, 60), (300, 200), (17, 5)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        for result in (crop_image(augmentation, image, 0), augmentation.test_transform(image)):
            assert (type(result), result.dtype, result.shape) == (
                torch.Tensor,
                torch.uint8,
                (3, augmentation.size, augmentation.size),
            )
        assert torch.equal(augmentation.test_transform(image), augmentation.test_transform(image))
        assert torch.equal(crop_image(augmentation, image, 0), crop_image(augmentation, image, 0))


def test_only_photos_are_cropped_at_random():
    image = make_coordinate_image()
    for name in ("cifar", "imagenet"):
        assert not torch.equal(
            crop_image(build_augmentation(name), image, 0, view=0),
            crop_image(build_augmentation(name), image, 0, view=1),
        )
    assert torch.equal(
        crop_image(build_augmentation("digits"), image, 0), build_augmentation("digits").test_transform(image)
    )


def test_test_images_are_resized_and_centre_cropped():
    def to_tensor(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    image = make_coordinate_image().crop((0, 0, 240, 160))
    large = image.resize((384, 256), Image.Resampling.BILINEAR)
    assert torch.equal(build_augmentation("imagenet").test_transform(image), to_tensor(large.crop((80, 16, 304, 240))))
    small = image.resize((48, 32), Image.Resampling.BILINEAR)
    assert torch.equal(build_augmentation("cifar").test_transform(image), to_tensor(small.crop((8, 0, 40, 32))))
    assert torch.equal(
        build_augmentation("digits").test_transform(image), to_tensor(image.resize((32, 32), Image.Resampling.BILINEAR))
    )
    assert torch.equal(
        build_augmentation("cifar").test_transform(small.crop((8, 0, 40, 32))), to_tensor(small.crop((8, 0, 40, 32)))
    )


# Normalization and configuration


def test_normalize_uses_the_inputs_order_of_channels():
    images = random_images(2, 4)
    assert_close(normalize(images, IMAGENET), V.normalize(images.float(), list(IMAGENET.mean), list(IMAGENET.std)))
    bgr = V.normalize(images[:, [2, 1, 0]].float(), list(MSRA.mean), list(MSRA.std))
    assert_close(normalize(images, MSRA), bgr)
    assert_close(normalize(images[0], MSRA), bgr[0])


def test_augmentations_have_the_published_sizes_and_inputs():
    assert {name: (build_augmentation(name).size, build_augmentation(name).input_format) for name in NAMES} == {
        "cifar": (32, CIFAR),
        "digits": (32, IMAGENET),
        "imagenet": (224, IMAGENET),
    }
    assert (build_augmentation("imagenet", 96).size, build_augmentation("cifar").name) == (96, "cifar")


@pytest.mark.parametrize("name", NAMES)
def test_augmentations_can_be_pickled(name):
    augmentation = build_augmentation(name, 24)
    unpickled = pickle.loads(pickle.dumps(augmentation))
    images, random_numbers = random_images(2, 24), draw(augmentation, 2)
    assert torch.equal(
        unpickled.batch_transform(images, random_numbers), augmentation.batch_transform(images, random_numbers)
    )
    assert torch.equal(
        crop_image(unpickled, make_coordinate_image(), 0), crop_image(augmentation, make_coordinate_image(), 0)
    )


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(UserError, match="unknown augmentation 'imagnet'; did you mean 'imagenet'"):
        build_augmentation("imagnet")
    with pytest.raises(UserError, match="known: cifar, digits, imagenet"):
        build_augmentation("zzz")
    with pytest.raises(UserError, match="must be 1 pixel or more, got 0"):
        build_augmentation("cifar", 0)
