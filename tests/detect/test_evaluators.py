"""AP is 0 where there are objects and nothing is found, and has no value where there are none: of COCO and of VOC."""

import json
import math

import pytest
import torch

from ssql_det import d2
from ssql_det.detect.evaluators import _find_classes, build_evaluator

SIZE = 200
SMALL, LARGE = [10, 10, 20, 20], [50, 50, 120, 120]  # x, y, width, height


def write_coco(folder, boxes):
    """One image with objects of the first of two classes."""
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        | {"segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]]}
        for number, box in enumerate(boxes, start=1)
    ]
    images = [{"id": 1, "file_name": "1.jpg", "width": SIZE, "height": SIZE}]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    file = folder / "a.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return {"evaluator_type": "coco", "json_file": str(file), "thing_dataset_id_to_contiguous_id": {1: 0, 2: 1}}


def write_voc(folder, boxes, year):
    for each in ("Annotations", "ImageSets/Main"):
        (folder / each).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("1\n")
    objects = "".join(
        "<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
        for x, y, width, height in boxes
    )
    (folder / "Annotations/1.xml").write_text(f"<annotation>{objects}</annotation>")
    return {"evaluator_type": "pascal_voc", "dirname": str(folder), "split": "test", "year": year}


def detect(found, with_masks):
    """Detections (box, class) with falling scores."""
    boxes = torch.tensor([[x, y, x + width, y + height] for (x, y, width, height), _ in found]).reshape(-1, 4).float()
    instances = d2.Instances((SIZE, SIZE))
    instances.pred_boxes = d2.Boxes(boxes)
    instances.scores = torch.linspace(0.9, 0.5, len(found))
    instances.pred_classes = torch.tensor([index for _, index in found], dtype=torch.int64)
    if with_masks:
        instances.pred_masks = torch.zeros(len(found), SIZE, SIZE, dtype=torch.bool)
    return [{"instances": instances}]


@pytest.fixture
def evaluate(tmp_path):
    name = "two classes"

    def run(kind, boxes, found, with_masks=False):
        _find_classes.cache_clear()
        metadata = write_coco(tmp_path, boxes) if kind == "coco" else write_voc(tmp_path, boxes, kind)
        d2.MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], **metadata)
        evaluator = build_evaluator(name, str(tmp_path))
        evaluator.reset()
        evaluator.process([{"image_id": 1 if kind == "coco" else "1"}], detect(found, with_masks))
        return evaluator.evaluate()

    yield run
    d2.MetadataCatalog.remove(name)


KINDS = ["coco", 2007, 2012]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_detected_is_0_where_there_are_objects(kind, evaluate):
    metrics = evaluate(kind, [SMALL], [])["bbox"]
    assert [metrics[name] for name in ("AP", "AP50", "AP75")] == [0, 0, 0]
    if kind == "coco":
        assert metrics["APs"] == 0
        assert math.isnan(metrics["APm"])
        assert math.isnan(metrics["APl"])


@pytest.mark.parametrize("found", [[], [(SMALL, 0)]], ids=["nothing", "something"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_objects_there_is_no_value(kind, found, evaluate):
    metrics = evaluate(kind, [], found)["bbox"]
    assert all(math.isnan(metrics[name]) for name in ("AP", "AP50", "AP75"))


@pytest.mark.parametrize("found", [[(LARGE, 0)], [(LARGE, 0), (SMALL, 1)]], ids=["right", "and one of the other class"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_objects_does_not_count(kind, found, evaluate):
    metrics = evaluate(kind, [LARGE], found)["bbox"]
    assert [metrics[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([100, 100, 100])


def test_nothing_detected_is_0_for_masks_too(evaluate):
    results = evaluate("coco", [SMALL, LARGE], [], with_masks=True)
    assert results["segm"]["AP"] == results["segm"]["APs"] == results["segm"]["APl"] == 0
    assert math.isnan(results["segm"]["APm"])
