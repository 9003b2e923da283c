"""Scenes and crops: sizes, kinds of objects, exact masks and boxes, contrast."""

import numpy as np
import pytest

from ssql_det.core.errors import UserError
from ssql_det.toydata.dataset import ToyDataSettings
from ssql_det.toydata.digits import blend, choose_colour, draw_background, load_digit_split, make_crop, warp_digit
from ssql_det.toydata.scenes import make_scene


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(np.random.default_rng([0, index]), load_digit_split("train")) for index in range(250)]


def test_sizes_and_object_counts_are_within_their_limits(scenes):
    sides = {side for scene in scenes for side in scene.image.shape[:2]}
    assert min(sides) >= 128
    assert max(sides) <= 320
    assert max(sides) - min(sides) > 180
    counts = [len(scene.objects) for scene in scenes]
    assert 0 < counts.count(0) < 25
    assert max(counts) >= 7
    assert max(counts) <= 8


def test_every_kind_of_object_occurs(scenes):
    objects = [each for scene in scenes for each in scene.objects]
    for kind in ("truncated", "occluded", "difficult", "crowd"):
        fraction = np.mean([getattr(each, kind) for each in objects])
        assert 0.005 < fraction < 0.6, kind
    assert {each.label for each in objects} == set(range(10))


def test_boxes_fit_their_masks_exactly_and_masks_do_not_overlap(scenes):
    for scene in scenes:
        coverage = np.zeros(scene.image.shape[:2], int)
        for each in scene.objects:
            x0, y0, x1, y1 = each.box
            assert each.mask[y0:y1, x0:x1].sum() == each.mask.sum() > 0
            assert each.mask[y0].any()
            assert each.mask[y1 - 1].any()
            assert each.mask[:, x0].any()
            assert each.mask[:, x1 - 1].any()
            coverage += each.mask
        assert coverage.max(initial=0) <= 1


def test_the_smallest_scenes_have_crowds_too():
    scenes = [make_scene(np.random.default_rng(seed), load_digit_split("train"), (96, 96)) for seed in range(120)]
    assert sum(each.crowd for scene in scenes for each in scene.objects) > 5


def test_an_alpha_mask_covers_the_drawn_pixels():
    rng, shape = np.random.default_rng(0), (80, 90)
    background = draw_background(rng, *shape, texture=0.5)
    alpha = warp_digit(load_digit_split("train").alphas[0], *shape, (40, 40), 50, 10)
    image = blend(background, alpha, choose_colour(rng, background, alpha, 0.5))
    changed = np.abs(image - background).max(-1)
    assert changed[alpha > 0.5].min() > changed[alpha < 0.5].max(initial=0) * 0.4
    assert not changed[alpha == 0].any()


def test_the_colour_contrasts_with_any_background():
    luma = np.array([0.299, 0.587, 0.114])
    for seed in range(60):
        rng = np.random.default_rng(seed)
        background = draw_background(rng, 32, 32, texture=1.0)
        alpha = warp_digit(load_digit_split("val").alphas[seed], 32, 32, (16, 16), 24, 0)
        difference = (
            choose_colour(rng, background, alpha, 0.5) @ luma - ((background @ luma) * alpha).sum() / alpha.sum()
        )
        assert abs(difference) > 45


def test_crops_become_more_textured_with_difficulty():
    def texture(difficulty):
        crops = [
            make_crop(np.random.default_rng(seed), load_digit_split("train"), 64, difficulty)[0] for seed in range(30)
        ]
        return np.mean([np.abs(np.diff(crop.astype(float), axis=0)).mean() for crop in crops])

    assert texture(0) < texture(0.5) < texture(1)
    with pytest.raises(UserError, match=r"difficulty must be from 0 to 1, got 1\.5"):
        ToyDataSettings(difficulty=1.5)
