"""Evaluation: two processes against one, metrics against their definitions, and what is refused."""

import importlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.minid2 import evaluation_worker
from support.minid2.evaluation_data import (
    CLASSES,
    DETECTIONS,
    HEIGHT,
    IDS,
    IMAGES,
    WIDTH,
    LabelledBox,
    draw_objects,
    make_batches,
    registered,
    run_evaluator,
    write_coco,
    write_voc,
)

from ssql_det.core.launch import launch
from ssql_det.minid2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from ssql_det.minid2.evaluation.pascal_voc_evaluation import parse_rec, voc_ap, voc_eval
from ssql_det.minid2.structures import Boxes, Instances

pytestmark = pytest.mark.slow


def engine(package):
    return importlib.import_module(f"ssql_det.minid2.{package}")


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / "voc", draw_objects()) | {"year": 2007, "thing_classes": CLASSES[:3]}


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "instances.json", draw_objects())


def voc_results(known, detections, **options):
    with registered(engine, **known) as dataset:
        return run_evaluator(PascalVOCDetectionEvaluator(dataset), make_batches(engine, detections, **options))["bbox"]


def coco_results(known, detections, masks=True, images=IMAGES, **options):
    with registered(engine, **known) as dataset:
        pairs = make_batches(engine, detections, masks=masks, images=images, name=None)
        return run_evaluator(COCOEvaluator(dataset, **options), pairs)


# Two processes


def test_two_processes_give_what_one_gives(voc, coco, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    del voc["year"]
    shares = {"halves": (IMAGES[:4], IMAGES[4:]), "all and none": (IMAGES, [])}
    launch(evaluation_worker.run, "ssql_det.minid2", voc, coco, tmp_path, shares, processes=2)
    (tmp_path / "alone").mkdir()
    alone = evaluation_worker.evaluate_images("ssql_det.minid2", voc, coco, tmp_path / "alone", IMAGES)
    assert all(metrics["AP"] > 1 for results in alone for metrics in results.values())
    for name in shares:
        first, second = ((tmp_path / f"{name} {rank}.json").read_text() for rank in (0, 1))
        assert first == json.dumps(alone)
        assert json.loads(second) == [None, None, {}]
        files = [tmp_path / each / "coco_instances_results.json" for each in (name, "alone")]
        assert files[0].read_text() == files[1].read_text()


# The metrics


def test_what_is_all_there_is_right(voc, coco):
    objects = DETECTIONS["perfect"]
    for year in (2007, 2012):
        assert voc_results(voc | {"year": year}, objects) == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})
    for metrics in coco_results(coco, objects).values():
        known = [value for name, value in metrics.items() if name[3:] not in ("hard", "absent", "unseen")]
        assert known == pytest.approx([100] * 9)
        assert all(math.isnan(metrics[f"AP-{name}"]) for name in ("hard", "absent", "unseen"))


def test_the_order_of_images_and_detections_does_not_matter(voc, coco):
    images, detections = list(IMAGES), list(DETECTIONS["far"])
    shuffled = random.Random(0)
    shuffled.shuffle(images)
    shuffled.shuffle(detections)
    assert voc_results(voc, detections, images=images) == voc_results(voc, DETECTIONS["far"])
    ours = coco_results(coco, detections, images=images)
    assert str(ours) == str(coco_results(coco, DETECTIONS["far"]))


def covered(box):
    """The pixels of a box in whole coordinates."""
    x0, y0, x1, y1 = box
    pixels = np.zeros((HEIGHT, WIDTH), dtype=bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def classify_detections(objects, detections, overlap):
    """Whether each detection, highest score first, is right; None if it does not count. Overlaps count pixels."""
    found = set()
    for each in sorted(detections, key=lambda detection: -detection.score):
        shares = {}
        for index, other in enumerate(objects):
            if other.image == each.image:
                first, second = covered(each.box), covered(other.box)
                shares[index] = (first & second).sum() / (first | second).sum()
        best = max(shares, key=shares.get, default=None)
        if best is None or shares[best] <= overlap:
            yield False
        elif objects[best].difficult:
            yield None
        else:
            yield best not in found
            found.add(best)


@pytest.mark.parametrize("overlap", [0.5, 0.7])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_average_precision_of_a_class_is_as_defined(tmp_path, label, overlap):
    objects = [each for each in draw_objects() if each.label == label]
    detections = [
        each._replace(box=tuple(np.clip(each.box, 0, (WIDTH, HEIGHT) * 2).astype(int)))
        for each in DETECTIONS["many"]
        if each.label == label
    ]
    write_voc(tmp_path / "voc", objects)
    corners = [(each, *np.add(each.box, (1, 1, 0, 0))) for each in detections]
    lines = [f"{each.image:06} {each.score} {' '.join(map(str, box))}" for each, *box in corners]
    (tmp_path / f"{CLASSES[label]}.txt").write_text("\n".join(lines))

    total = sum(not each.difficult for each in objects)
    assert total % 5, "a recall of a tenth would be decided by rounding"
    right = wrong = 0
    curve = []
    for is_right in classify_detections(objects, detections, overlap):
        right += is_right is True
        wrong += is_right is False
        curve.append((right / total, right / max(right + wrong, 1)))

    def best_from(level):
        return max((precision for recall, precision in curve if recall >= level), default=0)

    paths = [str(tmp_path / each) for each in ("{}.txt", "voc/Annotations/{}.xml", "voc/ImageSets/Main/test.txt")]
    recall, precision, ap = voc_eval(*paths, CLASSES[label], overlap, use_07_metric=True)
    assert np.stack([recall, precision], axis=1).tolist() == [pytest.approx(point) for point in curve]
    assert ap == pytest.approx(sum(best_from(tenths / 10) for tenths in range(11)) / 11)
    *_, area = voc_eval(*paths, CLASSES[label], overlap)
    assert area == pytest.approx(sum(best_from(count / total) for count in range(1, total + 1)) / total)
    assert 0 < ap < 1


def test_half_an_overlap_is_not_enough(voc, tmp_path):
    known = write_voc(tmp_path / "one", [LabelledBox(2, 0, (0, 0, 10, 10))]) | {"year": 2007, "thing_classes": ["disc"]}
    half, more = LabelledBox(2, 0, (0, 0, 10, 5), score=0.9), LabelledBox(2, 0, (0, 0, 10, 5.1), score=0.9)
    assert voc_results(known, [half])["AP50"] == 0
    assert voc_results(known, [more])["AP50"] == pytest.approx(100)


def test_what_is_difficult_counts_neither_way(voc):
    without = [each for each in DETECTIONS["perfect"] if not each.difficult]
    assert len(without) < len(DETECTIONS["perfect"])
    assert voc_results(voc, without) == voc_results(voc, DETECTIONS["perfect"])


def test_finding_an_object_twice_is_a_mistake(voc):
    twice = [copy._replace(score=copy.score + 0.001 * again) for copy in DETECTIONS["perfect"] for again in (0, 1)]
    assert voc_results(voc, twice)["AP50"] < 99


@pytest.mark.parametrize("limit", [100, 12])
def test_coco_says_the_same_of_the_file_that_is_left(coco, tmp_path, capsys, limit):
    results = coco_results(
        coco, DETECTIONS["many"], masks=False, output_dir=str(tmp_path / "out"), max_dets_per_image=limit
    )
    truth = COCO(coco["json_file"])
    official = COCOeval(truth, truth.loadRes(str(tmp_path / "out/coco_instances_results.json")), "bbox")
    official.params.maxDets = [1, 10, limit]
    official.evaluate()
    official.accumulate()
    official.summarize()
    first = 0 if limit == 100 else 1  # its own summary of the mean AP knows only 100
    assert [*results["bbox"].values()][first:6] == pytest.approx((official.stats[first:6] * 100).tolist())


def test_evaluation_changes_nothing(coco, tmp_path, capfd):
    with registered(engine, **coco) as dataset:
        evaluator = COCOEvaluator(dataset, output_dir=str(tmp_path))
        first = run_evaluator(evaluator, make_batches(engine, DETECTIONS["close"], masks=True, name=None))
        before = (tmp_path / "coco_instances_results.json").read_text()
        assert str(evaluator.evaluate()) == str(first)
    assert (tmp_path / "coco_instances_results.json").read_text() == before
    assert capfd.readouterr().out == ""


def test_average_precision_of_an_example():
    assert voc_ap(np.array([0.5, 1.0]), np.array([1.0, 0.5])) == 0.75
    assert voc_ap(np.array([0.5, 1.0]), np.array([1.0, 0.5]), True) == pytest.approx((6 + 5 / 2) / 11)


# The loop


def test_a_model_that_fails_is_left_in_its_mode():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError):
        inference_on_dataset(model, ["no tensor"], None)
    assert model.training
    assert torch.is_grad_enabled()


def test_progress_is_logged_with_what_is_left(caplog, monkeypatch):
    monkeypatch.setattr("ssql_det.minid2.utils.logger._LOG_TIMER", {})
    with caplog.at_level("INFO"):
        inference_on_dataset(lambda inputs: inputs, range(40), None)
    (line,) = [line for line in caplog.messages if "ETA" in line]  # others come too soon
    assert line.startswith("Inference done 11/40. Dataloading: 0.0")
    assert line.endswith("s/iter. ETA=0:00:00")


def test_tasks_of_the_same_name_are_refused():
    class BoxEvaluator(DatasetEvaluator):
        def evaluate(self):
            return {"bbox": {}}

    with pytest.raises(AssertionError, match=r"same name: .'bbox'"):
        DatasetEvaluators([BoxEvaluator(), BoxEvaluator()]).evaluate()


# What is refused

FOUND = [LabelledBox(2, 0, (1, 1, 9, 9), score=0.5)]


def test_coco_data_sets_that_cannot_be_evaluated(coco, tmp_path):
    with registered(engine) as dataset, pytest.raises(ValueError, match=r"'judged' have no json_file: .*register_coco"):
        COCOEvaluator(dataset)
    with pytest.raises(FileNotFoundError, match=r"nowhere.json"):
        coco_results(coco | {"json_file": str(tmp_path / "nowhere.json")}, [])
    for name, text in {"cut": '{"images": [', "list": "[1, 2]", "bare": '{"images": [{}]}'}.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{name}.json is not a COCO annotation file"):
            coco_results(coco | {"json_file": str(path)}, [])


def test_coco_detections_that_cannot_be_evaluated(coco):
    with pytest.raises(ValueError, match=r"in 1 images that .*instances.json does not list, such as 77"):
        coco_results(coco, [FOUND[0]._replace(image=77)], images=[2, 77])
    with pytest.raises(ValueError, match="of class 6, but data set 'judged' has only 6 classes"):
        coco_results(coco, [FOUND[0]._replace(label=6)])
    with pytest.raises(ValueError, match="some detections have none"):
        coco_results(coco, FOUND, masks=False, tasks=("bbox", "segm"))
    with pytest.raises(ValueError, match=r"not .'keypoints'"):
        coco_results(coco, FOUND, tasks=("bbox", "keypoints"))
    with registered(engine, **coco) as dataset, pytest.raises(NotImplementedError, match="not proposals"):
        COCOEvaluator(dataset).process([{"image_id": 2}], [{"proposals": Instances((9, 9), boxes=Boxes([]))}])


def test_a_config_in_the_place_of_tasks_is_passed_over(coco):
    cfg = engine("config").get_cfg()
    assert list(coco_results(coco, FOUND, tasks=cfg)) == ["bbox", "segm"]


def test_voc_data_sets_that_cannot_be_evaluated(voc):
    with registered(engine) as dataset, pytest.raises(AttributeError, match="in the metadata of dataset 'judged'"):
        PascalVOCDetectionEvaluator(dataset)
    with pytest.raises(ValueError, match="'judged' has the year 2010"):
        voc_results(voc | {"year": 2010}, FOUND)
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt"):
        voc_results(voc | {"split": "nowhere"}, FOUND)
    with pytest.raises(ValueError, match=r"in image '000077', which .*test.txt does not list"):
        voc_results(voc, [FOUND[0]._replace(image=77)], images=[77])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", "no element found"),
        ("<pose>Left</pose>", "", "has no <pose>"),
        ("<xmin>", "<xmin>.", r"invalid literal for int\(\)"),
        ("bndbox", "box", "has no <bndbox/xmin>"),
    ],
)
def test_voc_annotations_that_cannot_be_read(voc, old, new, message):
    path = Path(voc["dirname"], "Annotations/000003.xml")
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"000003.xml is no VOC annotation: .*{message}"):
        voc_results(voc, FOUND)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000003.xml"):
        voc_results(voc, FOUND)


def test_classes_without_a_mapping_are_the_data_sets_own(coco):
    own = [each._replace(label=IDS[each.label]) for each in DETECTIONS["close"]]
    mapped = coco_results(coco, DETECTIONS["close"])
    del coco["thing_dataset_id_to_contiguous_id"]
    assert str(coco_results(coco, own)) == str(mapped)


def test_voc_annotations_have_the_encoding_that_they_declare(voc):
    path = Path(voc["dirname"], "Annotations/000003.xml")
    text = path.read_text()
    declared = text.replace("<pose>Left</pose>", "<pose>à gauche</pose>")
    path.write_bytes(f'<?xml version="1.0" encoding="ISO-8859-1"?>{declared}'.encode("latin-1"))
    results = voc_results(voc, FOUND)
    path.write_text(text)
    parse_rec.cache_clear()
    assert voc_results(voc, FOUND) == results
