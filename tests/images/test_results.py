"""The files of a command that detects: COCO's JSON, readable by pycocotools, and PNG."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ssql_det.core.errors import UserError
from ssql_det.images.results import Detection, collect_detections, save_detections, save_picture


def test_detections_are_collected_exactly():
    generator = np.random.default_rng(0)
    boxes = generator.uniform(0, 500, (5, 4)).astype(np.float32)
    scores, classes = generator.random(5, np.float32), generator.integers(0, 9, 5)
    masks = generator.random((5, 6, 7)) < 0.5
    found = collect_detections(boxes, scores, classes, masks)
    for index, each in enumerate(found):
        x0, y0, x1, y1 = (float(value) for value in boxes[index])
        assert each.box == (x0, y0, x1 - x0, y1 - y0)
        assert (each.score, each.class_index) == (float(scores[index]), int(classes[index]))
        assert each.mask["size"] == [6, 7]
    assert [each.mask for each in collect_detections(boxes, scores, classes)] == [None] * 5
    assert collect_detections(boxes[:0], scores[:0], classes[:0], masks[:0]) == []


def test_the_json_is_an_annotation_file_of_coco(tmp_path):
    mask = {"size": [2, 2], "counts": "13"}
    images = [tmp_path / name for name in ("a.jpg", "b.png", "c.png")]
    found = [
        [Detection(1, (1, 2, 3.5, 4), 0.75, mask)],
        [],
        [Detection(0, (0, 0, 1, 1), 0.5), Detection(1, (0,) * 4, 0)],
    ]
    save_detections(path := tmp_path / "out" / "found.json", images, found, ["dog", "cat"], [18, 17])
    assert json.loads(path.read_text()) == {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.png"}, {"id": 3, "file_name": "c.png"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 17, "bbox": [1, 2, 3.5, 4], "score": 0.75, "segmentation": mask},
            {"id": 2, "image_id": 3, "category_id": 18, "bbox": [0, 0, 1, 1], "score": 0.5},
            {"id": 3, "image_id": 3, "category_id": 17, "bbox": [0, 0, 0, 0], "score": 0},
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert coco_mask.decode(coco.loadAnns([1])[0]["segmentation"]).tolist() == [[0, 1], [1, 1]]
    assert coco.getAnnIds(imgIds=[3], catIds=[17]) == [3]


def test_a_picture_is_its_panels_side_by_side(tmp_path):
    panels = [np.random.default_rng(seed).integers(0, 256, (5, 4 + seed, 3), np.uint8) for seed in range(3)]
    save_picture(path := tmp_path / "out" / "a.png", panels)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.concatenate(panels, axis=1))


def test_a_failed_write_leaves_the_old_file(tmp_path, small_disk):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "a.png").write_text("old")
    small_disk()
    found = [[Detection(0, (0, 0, 1, 1), 0.5)] * 2000]
    with pytest.raises(UserError, match=r"could not write .*a\.json"):
        save_detections(tmp_path / "a.json", [tmp_path / "a.jpg"], found, ["dog"], [1])
    with pytest.raises(UserError, match=r"could not write .*a\.png"):
        save_picture(tmp_path / "a.png", [np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)])
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["old", "old"]
