"""Scenes and crops: what is promised of every one of them."""

import numpy as np
import pytest

from ssql_det.core.errors import UserError
from ssql_det.toydata.dataset import ToyDataSettings
from ssql_det.toydata.digits import background, ink, load_digit_split, make_crop, paint, place
from ssql_det.toydata.scenes import make_scene


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(np.random.default_rng([0, index]), load_digit_split("train")) for index in range(250)]


def test_sizes_and_counts_cover_what_is_promised(scenes):
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
        share = np.mean([getattr(each, kind) for each in objects])
        assert 0.005 < share < 0.6, kind
    assert {each.label for each in objects} == set(range(10))


def test_boxes_fit_their_masks_to_the_pixel_and_masks_do_not_overlap(scenes):
    for scene in scenes:
        taken = np.zeros(scene.image.shape[:2], int)
        for each in scene.objects:
            x0, y0, x1, y1 = each.box
            assert each.mask[y0:y1, x0:x1].sum() == each.mask.sum() > 0
            assert each.mask[y0].any()
            assert each.mask[y1 - 1].any()
            assert each.mask[:, x0].any()
            assert each.mask[:, x1 - 1].any()
            taken += each.mask
        assert taken.max(initial=0) <= 1


def test_the_least_scenes_have_room_for_crowds():
    scenes = [make_scene(np.random.default_rng(seed), load_digit_split("train"), (96, 96)) for seed in range(120)]
    assert sum(each.crowd for scene in scenes for each in scene.objects) > 5


def test_a_mask_covers_the_ink():
    rng, shape = np.random.default_rng(0), (80, 90)
    behind = background(rng, *shape, texture=0.5)
    where = place(load_digit_split("train").alphas[0], *shape, (40, 40), 50, 10)
    image = paint(behind, where, ink(rng, behind, where, 0.5))
    changed = np.abs(image - behind).max(-1)
    assert changed[where > 0.5].min() > changed[where < 0.5].max(initial=0) * 0.4
    assert not changed[where == 0].any()


def test_ink_stands_out_from_any_background():
    luma = np.array([0.299, 0.587, 0.114])
    for seed in range(60):
        rng = np.random.default_rng(seed)
        behind = background(rng, 32, 32, texture=1.0)
        where = place(load_digit_split("val").alphas[seed], 32, 32, (16, 16), 24, 0)
        difference = ink(rng, behind, where, 0.5) @ luma - ((behind @ luma) * where).sum() / where.sum()
        assert abs(difference) > 45


def test_crops_go_from_flat_and_large_to_textured_and_small():
    def texture(difficulty):
        crops = [
            make_crop(np.random.default_rng(seed), load_digit_split("train"), 64, difficulty)[0] for seed in range(30)
        ]
        return np.mean([np.abs(np.diff(crop.astype(float), axis=0)).mean() for crop in crops])

    assert texture(0) < texture(0.5) < texture(1)
    with pytest.raises(UserError, match=r"difficulty goes from 0 to 1, got 1\.5"):
        ToyDataSettings(difficulty=1.5)
