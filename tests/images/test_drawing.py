"""Detections drawn on an image: where the pixels of boxes, masks and labels lie, and that nothing hostile crashes."""

import itertools

import numpy as np
import pytest
from PIL import ImageDraw

from ssql_det.images import drawing
from ssql_det.images.drawing import draw_detections, draw_panel, find_outline, get_class_colour
from ssql_det.images.masks import encode_rle
from ssql_det.images.results import Detection

BLACK = np.zeros((100, 120, 3), np.uint8)


def draw(boxes, labels=None, classes=None, masks=None, image=BLACK, **sizes):
    labels = labels if labels is not None else [""] * len(boxes)
    sizes = sizes or {"enlarged_to": 0}
    return draw_detections(image, boxes, labels, classes or list(range(len(boxes))), masks, **sizes)


def find_pixels(picture, colour):
    return {(int(y), int(x)) for y, x in np.argwhere((picture == colour).all(axis=2))}


def test_a_box_is_the_ring_of_its_first_and_last_pixels():
    drawn = draw([(10, 20, 30, 50)], classes=[3])
    ring = {(y, x) for y in range(20, 50) for x in range(10, 30) if y in (20, 49) or x in (10, 29)}
    assert find_pixels(drawn, get_class_colour(3)) == ring
    assert len(find_pixels(drawn, 0)) == 100 * 120 - len(ring)
    assert not BLACK.any()


def test_a_class_has_one_colour_and_classes_differ():
    colours = [get_class_colour(index) for index in range(80)]
    assert min(np.abs(np.subtract(one, other)).sum() for one, other in itertools.combinations(colours[:20], 2)) > 25
    assert len(set(colours)) == 80
    for boxes, classes in (([(5, 5, 9, 9)], [7]), ([(50, 5, 60, 9), (5, 5, 9, 9)], [1, 7])):
        assert tuple(draw(boxes, classes=classes)[5, 5]) == colours[7]


def test_what_comes_first_lies_on_top():
    square = np.zeros((100, 120), bool)
    square[20:50, 10:30] = True
    drawn = draw([(10, 20, 30, 50)] * 2, classes=[4, 5], masks=[square, square])
    assert tuple(drawn[20, 10]) == get_class_colour(4)


@pytest.mark.parametrize("factor", [1, 3])
def test_a_mask_is_tinted_and_outlined(factor):
    mask = np.random.default_rng(0).random((20, 30)) < 0.7
    image = np.full((20, 30, 3), 100, np.uint8)
    drawn = draw([(0, 0, 0, 0)], classes=[2], masks=[mask], image=image, enlarged_to=30 * factor)
    colour = np.array(get_class_colour(2))
    enlarged = mask.repeat(factor, 0).repeat(factor, 1)
    height, width = enlarged.shape
    for y, x in itertools.product(range(height), range(width)):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        is_inner = all(0 <= v < height and 0 <= u < width and enlarged[v, u] for v, u in around)
        expected = [100] * 3 if not enlarged[y, x] else 0.75 * 100 + 0.25 * colour if is_inner else colour
        if (y, x) != (0, 0):  # where the box is
            assert np.abs(drawn[y, x] - np.array(expected)).max() <= 0.5


def test_an_outline_closes_around_holes():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    assert find_outline(mask).sum() == 16 + 4


@pytest.mark.parametrize(
    ("size", "drawn_size"),
    [((50, 40), (300, 240)), ((320, 200), (320, 200)), ((400, 500), (400, 500)), ((700, 1400), (320, 640))],
)
def test_small_images_are_enlarged_by_whole_factors_and_large_ones_shrunk(size, drawn_size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    mask = np.zeros(size, bool)
    mask[size[0] // 2 :] = True
    drawn = draw([(0, 0, *size[::-1])], masks=[mask], image=image, enlarged_to=320)
    assert drawn.shape == (*drawn_size, 3)
    colour = get_class_colour(0)
    assert {tuple(drawn[y, x]) for y in (0, -1) for x in (0, -1)} == {colour}
    assert tuple(drawn[drawn_size[0] // 2, drawn_size[1] // 3]) == colour  # the mask's first row
    plain = draw([], image=image, enlarged_to=320)
    if drawn_size > size:
        assert np.array_equal(plain[::6, ::6], image)
        assert np.array_equal(plain[5::6, 5::6], image)


HOSTILE = [-np.inf, -1e30, -3, 0, 57.5, 119, 1e30, np.inf]


def test_corners_in_any_order_give_the_same_box():
    generator = np.random.default_rng(0)
    for _ in range(200):
        x0, y0, x1, y1 = generator.choice(HOSTILE, 4)
        drawn = draw([(x0, y0, x1, y1)], ["cat"])
        (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
        assert np.array_equal(drawn, draw([(x0, y0, x1, y1)], ["cat"]))


def test_a_box_with_nan_is_not_drawn():
    assert not draw([(3, np.nan, 20, 20)], ["cat"]).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 7)])
def test_images_of_any_shape_are_drawn(size):
    image = np.zeros((*size, 3), np.uint8)
    found = [Detection(0, (0, 0, size[1], size[0]), 0.5, encode_rle(np.ones(size, bool)))]
    panel = draw_panel(image, found, ["cat"], "FP")
    assert panel.dtype == np.uint8


def test_a_label_that_would_leave_the_image_is_moved_into_it():
    def count(box):
        return len(BLACK[..., 0].ravel()) - len(find_pixels(draw([box], ["cat"]), 0))

    outside = [(x, y, x + 5, y + 5) for x in (-90, 40, 180) for y in (-90, 40, 180) if (x, y) != (40, 40)]
    areas = {count(box) for box in outside}
    assert len(areas) == 1  # the whole bar of the label, and of the box nothing
    assert areas.pop() > 200


def test_the_text_of_a_label_is_readable():
    def luminance(colour):
        scaled = np.array(colour) / 255
        linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for index in range(80):
        image = np.full((30, 200, 3), 100, np.uint8)
        drawn = draw([(0, 90, 5, 95)], ["label of a class"], [index], image=image)
        bar, text = luminance(get_class_colour(index)), luminance((0, 0, 0))
        if not find_pixels(drawn, 0):
            text = luminance((255, 255, 255))
            assert find_pixels(drawn, 255)
        assert (max(bar, text) + 0.05) / (min(bar, text) + 0.05) > 4.4


@pytest.mark.parametrize("label", ["", "\udcff", "a\nb", "\x1b[31m", "x" * 100_000, "猫", "e\u0301" * 50])
def test_labels_of_any_text_are_drawn(label):
    drawn = draw([(10, 40, 30, 50)], [label])
    assert find_pixels(drawn, get_class_colour(0))
    assert draw_panel(BLACK, [], [], label).shape == (230, 244, 3)


def test_panels_have_a_caption_and_stand_side_by_side():
    mask = np.zeros((100, 120), bool)
    mask[20:50, 10:30] = True
    found = [Detection(1, (10, 20, 20, 30), 0.987, encode_rle(mask))]
    panels = [draw_panel(BLACK, found, ["dog", "cat"], "FP"), draw_panel(BLACK, [], ["dog", "cat"], "4w4a")]
    assert np.hstack(panels).shape == (26 + 200 + 4, 2 * (2 + 240 + 2), 3)
    for panel in panels:
        assert (panel[:26] < 100).any()
        assert (panel[:26, -20:] == 255).all()
        assert (panel[-4:] == 255).all()
    boxes, labels = [(10, 20, 30, 50)], ["cat 0.99"]
    assert np.array_equal(panels[0][26:-4, 2:-2], draw(boxes, labels, [1], [mask], enlarged_to=320))
    assert not np.array_equal(panels[0][:26, :20], panels[1][:26, :20])


# ---- labels that keep apart, and what changed ----------------------------------------------------------------------


def test_a_label_does_not_cover_another_one_where_there_is_room():
    """Two boxes of nearly the same place: the second label is inside its box."""
    boxes, image = [(20, 40, 100, 90), (22, 41, 102, 91)], np.full((100, 120, 3), 100, np.uint8)
    both = draw(boxes, ["one", "two"], [0, 1], image=image)
    alone = [draw([boxes[index]], [("one", "two")[index]], [index], image=image) for index in (0, 1)]
    bars = [len(find_pixels(each, get_class_colour(index))) for index, each in enumerate(alone)]
    kept = [len(find_pixels(both, get_class_colour(index))) for index in (0, 1)]
    assert kept[0] == bars[0]
    assert kept[1] > 0.8 * bars[1]


def test_labels_of_many_boxes_at_one_place_stay_in_the_image():
    drawn = draw([(50, 40, 60, 50)] * 12, [f"label {index}" for index in range(12)])
    assert drawn.shape == BLACK.shape
    assert find_pixels(drawn, get_class_colour(0))


def test_a_dashed_box_has_gaps_in_every_side():
    box = (10, 20, 90, 80)
    whole, dashed = (find_pixels(draw([box], dashed=each, enlarged_to=0), get_class_colour(0)) for each in ((), (0,)))
    assert dashed < whole
    for side in (
        {(20, x) for x in range(10, 90)},
        {(79, x) for x in range(10, 90)},
        {(y, 10) for y in range(20, 80)},
        {(y, 89) for y in range(20, 80)},
    ):
        assert 0.3 < len(dashed & side) / len(side) < 0.7
    assert not draw([(np.nan, 0, 1, 1)], dashed=(0,), enlarged_to=0).any()


def test_a_panel_says_what_was_lost_and_found_beside_the_reference(monkeypatch):
    calls = []
    monkeypatch.setattr(drawing, "draw_detections", lambda *args, **options: calls.append((args, options)) or BLACK)
    reference = [Detection(0, (10, 10, 20, 20), 0.9), Detection(1, (60, 10, 20, 20), 0.8)]
    found = [Detection(0, (11, 10, 20, 20), 0.6), Detection(0, (60, 10, 20, 20), 0.5)]
    texts = []
    draw_text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda *args, **how: texts.append(args[2]) or draw_text(*args, **how)
    )
    draw_panel(BLACK, found, ["cat", "dog"], "4w4a", reference)
    draw_panel(BLACK, reference, ["cat", "dog"], "8w8a", reference)
    draw_panel(BLACK, reference, ["cat", "dog"], "annotated", has_scores=False)
    ((_, _, labels, classes, _), options), *others = calls
    assert labels == ["cat 0.60", "new: cat 0.50", "lost: dog"]
    assert (classes, list(options["dashed"])) == ([0, 0, 1], [2])
    assert texts == ["4w4a: 1 lost, 1 new", "8w8a: the same objects", "annotated"]
    assert others[1][0][2] == ["cat", "dog"]
