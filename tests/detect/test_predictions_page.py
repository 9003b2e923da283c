"""The page of predictions: counts of all images, and as many images as there is room for."""

from pathlib import Path

import numpy as np
import pytest

from ssql_det.detect import predictions_page
from ssql_det.detect.predictions_page import PredictionsPage
from ssql_det.images.results import Detection, encode_jpeg
from ssql_det.quant import Bits
from ssql_det.report.blocks import Paragraph, Slides, Table

IMAGES = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]
PANEL = np.zeros((20, 30, 3), np.uint8)
CAT, DOG = Detection(0, (0, 0, 10, 10), 0.9), Detection(1, (0, 0, 10, 10), 0.8)
FOUND = {Bits.FP: [[CAT], [CAT, DOG], []], Bits(4, 4): [[DOG], [DOG, CAT], [CAT]]}


def build(bits=tuple(FOUND)):
    page = PredictionsPage()
    for image in IMAGES:
        page.add(image, {str(each): PANEL for each in bits})
    return page.build(IMAGES, {each: FOUND[each] for each in bits})


def find(page, kind):
    return [block for block in page.blocks if isinstance(block, kind)]


def test_each_image_has_its_counts_and_a_slider():
    page = build()
    (table,) = find(page, Table)
    assert table.header == ("image", "FP", "4w4a")
    assert table.rows == (
        ("a.jpg", "1", "1 (-1, +1)"),
        ("b.jpg", "2", "2"),
        ("c.jpg", "0", "1 (+1)"),
    )
    assert [(each.title, [figure.caption for figure in each.figures]) for each in find(page, Slides)] == [
        (image.name, ["FP", "4w4a"]) for image in IMAGES
    ]


def test_without_full_precision_nothing_is_lost_or_new():
    (table,) = find(build([Bits(4, 4)]), Table)
    assert table.rows[0] == ("a.jpg", "1")
    assert table.caption == "Objects in each image."


@pytest.mark.parametrize(("factor", "shown"), [(2.5, 1), (4.5, 2), (1.5, 0)])
def test_images_are_shown_as_long_as_there_is_room(factor, shown, monkeypatch):
    monkeypatch.setattr(predictions_page, "_MAX_BYTES", int(factor * len(encode_jpeg(PANEL))))
    page = build()
    assert [each.title for each in find(page, Slides)] == [image.name for image in IMAGES[:shown]]
    assert f"The other {3 - shown} are in the folder of this page." in find(page, Paragraph)[0].text
