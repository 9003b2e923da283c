"""Annotations that COCO's or VOC's metrics cannot read are refused before an evaluation."""

import json
import multiprocessing
import resource
from contextlib import redirect_stdout
from io import StringIO

import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.detect.configs import C4, FPN, config

from ssql_det import d2
from ssql_det.core.errors import UserError
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.evaluation_checks import check_evaluation_dataset

OBJECT = {"name": "cat", "pose": "Left", "truncated": "0", "difficult": "0"}
BOX = {"xmin": "1", "ymin": "1", "xmax": "9", "ymax": "9"}
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
ANNOTATION |= {"segmentation": [[1, 1, 6, 1, 6, 6]]}


@pytest.fixture
def dataset():
    """Registers a data set with its metadata; removes it afterwards."""
    name = "to be checked"

    def register(**metadata):
        d2.DatasetCatalog.register(name, list)
        d2.MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    if name in d2.DatasetCatalog.list():
        d2.DatasetCatalog.remove(name)
    d2.MetadataCatalog.remove(name)


def write_voc(folder, listed="a\n", fields=OBJECT, box=BOX):
    for each in ("Annotations", "ImageSets/Main"):
        (folder / each).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text(listed)
    tags = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    corners = "".join(f"<{name}>{value}</{name}>" for name, value in box.items())
    text = f"<annotation><object>{tags}<bndbox>{corners}</bndbox></object></annotation>"
    (folder / "Annotations/a.xml").write_text(text)
    return {"evaluator_type": "pascal_voc", "dirname": str(folder), "split": "test"}


def write_coco(file, without=(), **changes):
    annotation = {key: value for key, value in (ANNOTATION | changes).items() if key not in without}
    image = {"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(content))
    return {"evaluator_type": "coco", "json_file": str(file)}


def without(*names):
    return {name: value for name, value in OBJECT.items() if name not in names}


def test_a_data_set_that_can_be_evaluated_on_passes(dataset, tmp_path):
    check_evaluation_dataset(config(C4), dataset(**write_voc(tmp_path)))


@pytest.mark.parametrize("name", [C4, FPN])
def test_a_coco_data_set_that_can_be_evaluated_on_passes(name, dataset, tmp_path):
    check_evaluation_dataset(config(name), dataset(**write_coco(tmp_path / "a.json")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": without("difficult")}, "object 1 has difficult ''; VOC's metric needs a whole number"),
        ({"fields": without("pose")}, "object 1 has no pose, which VOC's metric needs"),
        ({"fields": OBJECT | {"truncated": "no"}}, "object 1 has truncated 'no'"),
        ({"box": BOX | {"xmax": "8.5"}}, "object 1 has bndbox/xmax '8.5'"),
        ({"box": BOX | {"xmax": "+-8"}}, "object 1 has bndbox/xmax '+-8'"),
        ({"box": BOX | {"xmax": "9" * 5000}}, "object 1 has bndbox/xmax '999"),
        ({"listed": "a\n\na\n"}, "test.txt: line 2 is empty; remove it"),
        ({"listed": "b\n"}, "b.xml cannot be read: "),
    ],
)
def test_incomplete_voc_annotations_are_refused(changes, message, dataset, tmp_path):
    with pytest.raises(UserError) as raised:
        check_evaluation_dataset(config(C4), dataset(**write_voc(tmp_path, **changes)))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"without": (key,)}, f"annotation 1 has no valid {key}, ") for key in ("area", "iscrowd", "bbox")),
        ({"bbox": [1, 2, 3]}, "annotation 1 has no bbox of four numbers"),
        ({"id": "a1"}, "annotation a1 has no valid id, which COCO's metrics need"),
        ({"area": float("nan")}, "annotation 1 has no valid area"),
        ({"iscrowd": 2}, "annotation 1 has no valid iscrowd"),
        (
            {"without": ("segmentation",)},
            "annotation 1 has no segmentation; to evaluate boxes only, set MODEL.MASK_ON False",
        ),
        ({"segmentation": [[1, 1, 5]]}, "annotation 1 has an invalid segmentation: "),
        ({"segmentation": []}, "annotation 1 has an invalid segmentation: "),
    ],
)
def test_incomplete_coco_annotations_are_refused(changes, message, dataset, tmp_path):
    name = dataset(**write_coco(tmp_path / "a.json", **changes))
    with pytest.raises(UserError) as raised:
        check_evaluation_dataset(config(FPN), name)
    assert message in str(raised.value)
    if "segmentation" in message:
        check_evaluation_dataset(config(FPN, MODEL__MASK_ON=False), name)


def test_an_object_of_id_0_is_a_warning(dataset, tmp_path, caplog):
    check_evaluation_dataset(config(FPN), dataset(**write_coco(tmp_path / "a.json", id=0)))
    assert "never match an annotation with the id 0" in caplog.text


def test_fewer_classes_than_the_detector_has_are_refused(dataset, tmp_path):
    name = dataset(**write_coco(tmp_path / "a.json"), thing_dataset_id_to_contiguous_id={1: 0})
    with pytest.raises(UserError, match=r"has 1 classes and MODEL\.ROI_HEADS\.NUM_CLASSES is 10"):
        check_evaluation_dataset(config(FPN), name)


def test_an_unsupported_evaluator_type_is_refused(dataset):
    with pytest.raises(UserError, match="has the evaluator_type 'lvis'; supported are coco and pascal_voc"):
        check_evaluation_dataset(config(C4), dataset(evaluator_type="lvis"))


# ---- what crashes pycocotools, or never ends there: in a process of its own ----------------------------------------

MASK = {"size": [10, 10], "counts": [40, 20, 40]}
DEADLY = {
    "RLE of size 0": ({"size": [0, 0], "counts": "1"}, "annotation 1 has an RLE mask of size [0, 0]"),
    "RLE longer than its image": (
        {"size": [10, 10], "counts": [0, 2**31, 40]},
        "annotation 1 has an RLE mask of 2147483688 pixels, but the image has 100",
    ),
    "compressed RLE longer than its image": (
        {"size": [10, 10], "counts": "PPPPPP1" * 20},
        "annotation 1 has an RLE mask whose counts are not whole numbers",
    ),
    "RLE of negative runs": ({"size": [10, 10], "counts": [-(2**31), 100]}, "counts are not whole numbers"),
    "polygon of 1e18": ([[1, 1, 1e18, 1, 6, 6]], "annotation 1 has a polygon that is not a list of numbers"),
    "zigzag": ([[0, 0, 1e6, 0] * 50_000], "annotation 1 has a polygon whose outline is more than 100 times"),
}


def evaluate_in_child(name, sender):
    """What a sweep does with a test set; ends with what the check says."""
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    try:
        check_dataset(name)
        check_evaluation_dataset(config(FPN), name)
    except UserError as refused:
        sender.send(str(refused))
        return
    with redirect_stdout(StringIO()):
        coco = COCO(d2.MetadataCatalog.get(name).json_file)
        detection = {"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": coco_rle(MASK)}
        evaluation = COCOeval(coco, coco.loadRes([detection]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    sender.send("evaluated")


def coco_rle(mask):
    return mask_util.frPyObjects(mask, *mask["size"])


@pytest.mark.slow
@pytest.mark.parametrize("segmentation", [*DEADLY, "valid"])
def test_no_mask_crashes_an_evaluation(segmentation, dataset, tmp_path):
    given, message = DEADLY.get(segmentation, (MASK, "evaluated"))
    name = dataset(**write_coco(tmp_path / "a.json", segmentation=given))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=evaluate_in_child, args=(name, sender))
    child.start()
    child.join(timeout=60)
    is_alive = child.is_alive()
    child.kill()
    child.join()
    assert not is_alive, "it does not end"
    assert child.exitcode == 0
    assert message in receiver.recv()
