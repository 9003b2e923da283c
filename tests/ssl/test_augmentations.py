"""Each adjustment against torchvision's, image by image; looks against a loop over samples; frames by property."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from ssql_det.convert.checkpoint import CIFAR, IMAGENET, MSRA
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
JITTERED, GRAYED, BLURRED, SIGMA = 0, 1, 2, 11  # columns of a photo's draws
POLARITY, GRAYED_DIGIT, NOISE = 10, 11, 12  # and of a digit's
NEVER = 0.999


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def kinds_of_images(side=12):
    """Name -> float images [n, 3, side, side] of values 0 to 1."""
    random = torch.rand(8, 3, side, side, generator=seeded())
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    return {
        "random": random,
        "black": torch.zeros(1, 3, side, side),
        "white": torch.ones(1, 3, side, side),
        "flat gray": torch.full((1, 3, side, side), 0.3),
        "gray": random[:, :1].expand(-1, 3, -1, -1),
        "nearly gray": random[:, :1] * 0.9 + random / 255,
        "two channels alike": torch.cat([random[:, :1], random[:, 1:2], random[:, 1:2]], dim=1),
        "of eight colours": corners[torch.randint(8, (8, side, side), generator=seeded())].permute(0, 3, 1, 2),
        "of one colour": corners.view(8, 3, 1, 1).expand(-1, -1, side, side),
        "of 256 levels": (random * 255).round() / 255,
        "dark": random / 255,
    }


def photos(count, side, seed=0):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=seeded(seed))


def coloured(count, side):
    """No channel is like another, so none is gray, and nothing is clamped."""
    return torch.tensor([60, 120, 160], dtype=torch.uint8).view(1, 3, 1, 1) + photos(count, side) // 16


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def as_values(looks, images):
    """Normalized images as values 0 to 255."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (images.mean, images.std))
    return looks * std + mean


# Adjustments


@pytest.mark.parametrize("name", ADJUSTMENTS)
@pytest.mark.parametrize("kind", kinds_of_images())
def test_an_adjustment_equals_torchvisions(name, kind):
    images = kinds_of_images()[kind]
    ends = [-0.5, -1 / 3, 0, 1 / 6, 0.5] if name == "hue" else [0, 0.6, 1, 1.4, 3]
    drawn = torch.rand(20, generator=seeded(1)) * (1 if name == "hue" else 2) - (0.5 if name == "hue" else 0)
    for factors in [torch.full((len(images),), end) for end in ends] + list(drawn.repeat(8).view(20, 8)):
        factors = factors[: len(images)]
        expected = [ADJUSTMENTS[name](image, float(factor)) for image, factor in zip(images, factors, strict=True)]
        close(getattr(augmentations, f"adjust_{name}")(images, factors), torch.stack(expected))


@pytest.mark.parametrize("kind", kinds_of_images())
def test_grayscale_equals_torchvisions(kind):
    images = kinds_of_images()[kind]
    close(
        augmentations.to_grayscale(images).expand_as(images),
        V.rgb_to_grayscale(images, num_output_channels=3),
        atol=1e-6,
    )


@pytest.mark.parametrize(("side", "radius"), [(224, 11), (96, 4), (32, 1), (12, 11), (5, 0)])
def test_blur_equals_torchvisions_up_to_the_border(side, radius):
    sigmas = torch.tensor([0.1, 0.35, 0.8, 1.3, 2.0])
    images = torch.rand(len(sigmas), 3, side, side, generator=seeded())
    size = [2 * radius + 1] * 2
    expected = [V.gaussian_blur(image, size, [float(s)] * 2) for image, s in zip(images, sigmas, strict=True)]
    close(augmentations.gaussian_blur(images, sigmas, radius), torch.stack(expected))


def test_jitter_goes_in_each_images_own_order():
    orders = torch.stack([torch.randperm(4, generator=seeded(row)) for row in range(30)] + [torch.full((4,), -1)] * 2)
    assert len(orders.unique(dim=0)) > 15
    images = torch.rand(len(orders), 3, 9, 9, generator=seeded())
    factors = torch.rand(len(orders), 4, generator=seeded(1)) * torch.tensor([2, 2, 2, 0.5])
    before = images.clone()
    expected = images.clone()
    adjustments = list(ADJUSTMENTS.values())
    for row, order in enumerate(orders.tolist()):
        for number in order:
            if number >= 0:
                expected[row] = adjustments[number](expected[row], float(factors[row, number]))
    close(augmentations.colour_jitter(images, orders, factors), expected)
    assert torch.equal(images, before)


# Batch transforms


def slow_photo_look(image, numbers, settings):
    """One sample [3, S, S], in torchvision's words and in the order of the published code."""
    image = image / 255
    if numbers[JITTERED] < 0.8:
        brightness, contrast, saturation, hue = (2 * numbers[7:11] - 1).tolist()
        factors = [1 + 0.4 * brightness, 1 + 0.4 * contrast, 1 + 0.4 * saturation, 0.1 * hue]
        for number in np.argsort(numbers[3:7].numpy()):
            image = list(ADJUSTMENTS.values())[number](image, factors[number])
    if numbers[GRAYED] < 0.2:
        image = V.rgb_to_grayscale(image, num_output_channels=3)
    if settings.name == "imagenet" and numbers[BLURRED] < 0.5:
        kernel = settings.size // 10 | 1
        image = V.gaussian_blur(image, [kernel] * 2, [0.1 + 1.9 * float(numbers[SIGMA])] * 2)
    return V.normalize(image, [m / 255 for m in settings.input.mean], [s / 255 for s in settings.input.std])


@pytest.mark.parametrize(("name", "size"), [("cifar", 32), ("imagenet", 64), ("imagenet", 224)])
def test_a_look_at_a_batch_is_that_at_each_sample(name, size):
    settings = build_augmentation(name, size)
    count = 200 if size < 100 else 16
    images, draws = photos(count, size), draw_random_numbers(0, range(count), 0, settings.num_random_numbers)
    expected = [slow_photo_look(image, numbers, settings) for image, numbers in zip(images, draws, strict=True)]
    close(
        settings.batch_transform(images, draws), torch.stack(expected), atol=3e-5
    )  # in units of std, 1/4 of the value's range


@pytest.mark.parametrize("name", NAMES)
def test_a_look_is_a_pure_function(name):
    settings = build_augmentation(name, 32)
    images, draws = photos(16, 32), draw_random_numbers(0, range(16), 0, settings.num_random_numbers)
    kept = images.clone(), draws.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = settings.batch_transform(images, draws)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(settings.batch_transform(images, draws), first)
    assert torch.equal(images, kept[0])
    assert torch.equal(draws, kept[1])
    assert not torch.equal(
        settings.batch_transform(images, draw_random_numbers(0, range(16), 1, settings.num_random_numbers)), first
    )


@pytest.mark.parametrize(("name", "size"), [("cifar", 32), ("digits", 32), ("imagenet", 96)])
def test_no_row_of_a_batch_sees_another(name, size):
    settings = build_augmentation(name, size)
    images, draws = photos(24, size), draw_random_numbers(0, range(24), 0, settings.num_random_numbers)
    looks = settings.batch_transform(images, draws)
    for row in range(24):
        close(settings.batch_transform(images[row : row + 1], draws[row : row + 1])[0], looks[row], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", kinds_of_images())
def test_looks_are_finite_and_of_values_0_to_255(name, kind):
    settings = build_augmentation(name, 24)
    images = (kinds_of_images(24)[kind] * 255).to(torch.uint8)
    lowest, highest = torch.zeros(settings.num_random_numbers), torch.full((settings.num_random_numbers,), 1 - 2**-24)
    for draws in (*draw_random_numbers(0, range(6), 0, settings.num_random_numbers), lowest, highest):
        looks = settings.batch_transform(images, draws.expand(len(images), -1))
        assert (looks.shape, looks.dtype) == (images.shape, torch.float32)
        values = as_values(looks, settings.input)
        assert -1e-3 <= values.min() <= values.max() <= 255 + 1e-3


def share_of(condition):
    return condition.float().mean().item()


def test_photos_are_jittered_gray_and_blurred_as_often_as_published():
    settings = build_augmentation("imagenet", 20)
    images, draws = coloured(3000, 20), draw_random_numbers(0, range(3000), 0, settings.num_random_numbers)
    plain = normalize(images, settings.input)

    def looked(*others):
        """What one choice alone does: the others are never made."""
        numbers = draws.clone()
        numbers[:, list(others)] = NEVER
        numbers[:, SIGMA] = 0.5
        return settings.batch_transform(images, numbers)

    def changed(looks):
        return (looks - plain).abs().amax((1, 2, 3)) > 1e-3

    grays = as_values(looked(JITTERED, BLURRED), settings.input)
    assert share_of(changed(looked(GRAYED, BLURRED))) == pytest.approx(0.8, abs=0.025)
    assert share_of((grays[:, 0] - grays[:, 1]).abs().amax((1, 2)) < 1e-2) == pytest.approx(0.2, abs=0.025)
    assert share_of(changed(looked(JITTERED, GRAYED))) == pytest.approx(0.5, abs=0.03)
    assert share_of(changed(looked(JITTERED, GRAYED, BLURRED))) == 0


def test_digits_are_gray_a_fifth_and_turned_in_polarity_half_of_the_time():
    settings = build_augmentation("digits", 8)
    draws = draw_random_numbers(0, range(3000), 0, settings.num_random_numbers)
    looks = as_values(settings.batch_transform(coloured(3000, 8), draws), IMAGENET)
    spread = (looks.amax(1) - looks.amin(1)).amax((1, 2))
    assert share_of(spread < 1e-2) == pytest.approx(0.2, abs=0.025)

    draws[:, NOISE] = 0
    left_dark = torch.full((3000, 3, 8, 8), 200, dtype=torch.uint8)
    left_dark[..., :4] = 20
    luma = augmentations.to_grayscale(as_values(settings.batch_transform(left_dark, draws), IMAGENET))
    assert share_of(luma[:, 0, 4, 0] < luma[:, 0, 4, 7]) == pytest.approx(0.5, abs=0.03)


# Parts of the digits' look


def test_digits_turn_and_scale_as_torchvisions_affine_does():
    image = torch.zeros(1, 3, 33, 33)
    image[..., 9:24, 9:24] = torch.rand(1, 3, 15, 15, generator=seeded())  # black all around: no border comes in
    for turn, degrees in ((0.0, 15.0), (0.5, 0.0), (1.0, -15.0)):
        for size, scale in ((0.0, 0.8), (2 / 3, 1.0), (1.0, 1.1)):
            places = torch.tensor([[turn, size, 0.5, 0.5]])
            expected = V.affine(image, degrees, [0, 0], scale, [0, 0], interpolation=InterpolationMode.BILINEAR)
            close(augmentations.affine(image, places), expected, atol=1e-4)


def test_digits_shift_by_a_tenth_and_their_border_goes_on():
    image = torch.rand(1, 3, 20, 20, generator=seeded())
    still = torch.tensor([[0.5, 2 / 3, 0.5, 0.5]])
    close(augmentations.affine(image, still), image)
    left = augmentations.affine(image, torch.tensor([[0.5, 2 / 3, 1.0, 0.5]]))
    close(left[..., :18], image[..., 2:])
    close(left[..., 18:], image[..., -1:].expand(-1, -1, -1, 2))
    down = augmentations.affine(image, torch.tensor([[0.5, 2 / 3, 0.5, 0.0]]))
    close(down[..., 2:, :], image[..., :18, :])


def test_two_colours_stay_apart_and_keep_or_turn_what_is_dark():
    images = torch.rand(500, 3, 6, 6, generator=seeded())
    colours = torch.rand(500, 6, generator=seeded(1))
    colours[:50, 3:] = colours[:50, :3]  # the same colour twice
    kept = torch.arange(500) % 2 == 0
    recoloured = augmentations.recolour(images, colours, kept)
    assert 0 <= recoloured.min() <= recoloured.max() <= 1 + 1e-6

    before, after = augmentations.to_grayscale(images).flatten(1), augmentations.grayscale(recoloured).flatten(1)
    contrast = after.amax(1) - after.amin(1)
    assert contrast.min() > 0.999 * 90 / 255
    close(contrast[:50], torch.full((50,), 90 / 255), atol=1e-3)

    stretched = (before - before.amin(1, keepdim=True)) / (before.amax(1) - before.amin(1))[:, None]
    share = (after - after.amin(1, keepdim=True)) / contrast[:, None]
    close(share, torch.where(kept[:, None], stretched, 1 - stretched), atol=1e-4)

    each, drawn = torch.arange(500), colours.view(500, 2, 3)
    luma = augmentations.to_grayscale(drawn.view(1000, 3, 1, 1)).view(500, 2)
    close(recoloured.flatten(2)[each, :, after.argmin(1)], drawn[each, luma.argmin(1)] * 165 / 255)
    close(recoloured.flatten(2)[each, :, after.argmax(1)], 1 - (1 - drawn[each, luma.argmax(1)]) * 165 / 255)


def test_noise_is_normal_and_as_strong_as_drawn():
    settings = build_augmentation("digits")
    flat = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    draws = draw_random_numbers(0, range(40), 0, settings.num_random_numbers)
    draws[:, :NOISE] = 0.5  # a flat image, in one colour
    for drawn, deviation in ((0.0, 0.0), (0.5, 4.0), (1 - 2**-24, 8.0)):
        draws[:, NOISE] = drawn
        values = as_values(settings.batch_transform(flat, draws), IMAGENET)
        noise = values - values.mean((0, 2, 3), keepdim=True)
        assert noise.std() == pytest.approx(deviation, rel=0.02, abs=1e-3)
        if deviation:
            for beyond, expected in ((1.0, 0.3173), (1.96, 0.05), (3.0, 0.0027)):
                assert share_of(noise.abs() > beyond * deviation) == pytest.approx(expected, abs=0.005)
            assert np.corrcoef(noise.transpose(0, 1).flatten(1).numpy())[0, 1] == pytest.approx(0, abs=0.02)


# Draws


def test_draws_follow_from_their_place_alone():
    together = draw_random_numbers(3, range(20), 1, 40)
    assert torch.equal(draw_random_numbers(3, [17, 4, 11], 1, 40), together[[17, 4, 11]])
    assert torch.equal(draw_random_numbers(3, torch.tensor([17, 4, 11]), 1, 40), together[[17, 4, 11]])
    assert torch.equal(
        torch.cat([draw_random_numbers(3, range(first, first + 5), 1, 40) for first in (0, 5, 10, 15)]), together
    )
    assert draw_random_numbers(3, [], 1, 40).shape == (0, 40)
    for other in (
        draw_random_numbers(4, range(20), 1, 40),
        draw_random_numbers(3, range(20), 0, 40),
        draw_random_numbers(3, range(20, 40), 1, 40),
    ):
        assert (other != together).float().mean() > 0.999
    assert len(together.unique()) > 790


def test_draws_are_not_those_of_the_frame():
    with seeded_rng(3, 17, 1):
        of_frame = torch.rand(40)
    assert (draw_random_numbers(3, [17], 1, 40)[0] != of_frame).all()


def test_draws_are_uniform_within_a_row_and_over_positions_and_views():
    def distance(values):
        """Kolmogorov and Smirnov's, times the root of the count: above 1.63 once in a hundred."""
        ordered, steps = values.flatten().sort().values, torch.arange(values.numel() + 1) / values.numel()
        return max((ordered - steps[:-1]).max(), (steps[1:] - ordered).max()).item() * math.sqrt(values.numel())

    draws = draw_random_numbers(0, range(3000), 0, 12)
    assert 0 <= draws.min() <= draws.max() < 1
    assert distance(draws) < 1.63
    assert all(distance(column) < 1.95 for column in draws.unbind(1))
    assert distance(draw_random_numbers(0, [5], 0, 5000)) < 1.63
    both = torch.cat([draws, draw_random_numbers(0, range(3000), 1, 12)], dim=1)
    off_diagonal = np.corrcoef(both.T.numpy()) - np.eye(24)
    assert np.abs(off_diagonal).max() < 0.08


# Frames and plain images


def map_of_places(side=256):
    """A PIL image whose red says how far to the right a pixel is, and whose green how far down."""
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    return Image.fromarray(np.stack([across, down, np.full_like(down, 128)], axis=2).astype(np.uint8))


def framed(settings, image, position, view=0):
    with seeded_rng(0, position, view):
        return settings.image_transform(image)


@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_frames_are_crops_of_a_fifth_to_all_and_half_are_flipped(name):
    settings, image = build_augmentation(name, 32), map_of_places()
    frames = torch.stack([framed(settings, image, position) for position in range(500)]).float()
    widths = (frames[:, 0, 16, 24] - frames[:, 0, 16, 8]) * 2  # in 32 pixels, from what 16 span
    heights = (frames[:, 1, 24, 16] - frames[:, 1, 8, 16]) * 2
    areas, ratios = (widths * heights).abs() / 256**2, (widths / heights).abs()
    assert 0.18 < areas.min() < 0.23
    assert 0.92 < areas.max() < 1.05
    assert areas.mean() == pytest.approx(0.56, abs=0.05)
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.42
    assert share_of(widths < 0) == pytest.approx(0.5, abs=0.06)
    assert (heights > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_frames_and_plain_images_are_bytes_of_the_recipes_size(name):
    settings = build_augmentation(name)
    for width, height in ((40, 60), (300, 200), (17, 5)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        for made in (framed(settings, image, 0), settings.test_transform(image)):
            assert (type(made), made.dtype, made.shape) == (
                torch.Tensor,
                torch.uint8,
                (3, settings.size, settings.size),
            )
        assert torch.equal(settings.test_transform(image), settings.test_transform(image))
        assert torch.equal(framed(settings, image, 0), framed(settings, image, 0))


def test_only_photos_are_framed_at_random():
    image = map_of_places()
    for name in ("cifar", "imagenet"):
        assert not torch.equal(
            framed(build_augmentation(name), image, 0, view=0), framed(build_augmentation(name), image, 0, view=1)
        )
    assert torch.equal(
        framed(build_augmentation("digits"), image, 0), build_augmentation("digits").test_transform(image)
    )


def test_plain_images_are_resized_and_cut_from_the_middle():
    def bytes_of(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    image = map_of_places().crop((0, 0, 240, 160))
    large = image.resize((384, 256), Image.Resampling.BILINEAR)
    assert torch.equal(build_augmentation("imagenet").test_transform(image), bytes_of(large.crop((80, 16, 304, 240))))
    small = image.resize((48, 32), Image.Resampling.BILINEAR)
    assert torch.equal(build_augmentation("cifar").test_transform(image), bytes_of(small.crop((8, 0, 40, 32))))
    assert torch.equal(
        build_augmentation("digits").test_transform(image), bytes_of(image.resize((32, 32), Image.Resampling.BILINEAR))
    )
    assert torch.equal(
        build_augmentation("cifar").test_transform(small.crop((8, 0, 40, 32))), bytes_of(small.crop((8, 0, 40, 32)))
    )


# Recipes


def test_normalized_takes_the_mean_and_divides_in_the_inputs_order_of_channels():
    images = photos(2, 4)
    close(normalize(images, IMAGENET), V.normalize(images.float(), list(IMAGENET.mean), list(IMAGENET.std)))
    turned = V.normalize(images[:, [2, 1, 0]].float(), list(MSRA.mean), list(MSRA.std))
    close(normalize(images, MSRA), turned)
    close(normalize(images[0], MSRA), turned[0])


def test_recipes_have_their_published_sizes_and_inputs():
    assert {name: (build_augmentation(name).size, build_augmentation(name).input) for name in NAMES} == {
        "cifar": (32, CIFAR),
        "digits": (32, IMAGENET),
        "imagenet": (224, IMAGENET),
    }
    assert (build_augmentation("imagenet", 96).size, build_augmentation("cifar").name) == (96, "cifar")


@pytest.mark.parametrize("name", NAMES)
def test_recipes_go_to_worker_processes(name):
    settings = build_augmentation(name, 24)
    travelled = pickle.loads(pickle.dumps(settings))
    images, draws = photos(2, 24), draw_random_numbers(0, range(2), 0, settings.num_random_numbers)
    assert torch.equal(travelled.batch_transform(images, draws), settings.batch_transform(images, draws))
    assert torch.equal(framed(travelled, map_of_places(), 0), framed(settings, map_of_places(), 0))


def test_unknown_recipes_and_sizes_are_refused():
    with pytest.raises(UserError, match="no recipe 'imagnet'; did you mean 'imagenet'"):
        build_augmentation("imagnet")
    with pytest.raises(UserError, match="known: cifar, digits, imagenet"):
        build_augmentation("zzz")
    with pytest.raises(UserError, match="at least 1 pixel a side, got 0"):
        build_augmentation("cifar", 0)
