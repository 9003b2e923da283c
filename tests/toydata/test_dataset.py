"""The toy data: the same bytes from any number of workers, read by COCO's and VOC's readers, complete or absent."""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.toydata.dataset import MANIFEST, ToyDataSettings, make_toy_data
from ssql_det.toydata.digits import CLASSES

pytestmark = pytest.mark.slow

SMALL = ToyDataSettings(scenes=8, crops=10)


def read_files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def coco(toy):
    def load(split):
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(toy / f"coco/annotations/instances_{split}.json"))

    return load


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_ground_truth_as_detections_gives_ap_100(coco, split, kind):
    ground_truth = coco(split)
    detections = []
    for each in ground_truth.loadAnns(ground_truth.getAnnIds(iscrowd=False)):
        shape = {"bbox": each["bbox"]} if kind == "bbox" else {"segmentation": ground_truth.annToRLE(each)}
        detections.append({"image_id": each["image_id"], "category_id": each["category_id"], "score": 1.0, **shape})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[:3] == pytest.approx(1.0)


def test_coco_annotations_agree_with_their_masks(coco):
    ground_truth = coco("train2017")
    crowds = 0
    for each in ground_truth.anns.values():
        mask = ground_truth.annToMask(each)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        assert (each["bbox"], each["area"]) == (box, mask.sum())
        assert isinstance(each["segmentation"], dict) == bool(each["iscrowd"])
        crowds += each["iscrowd"]
    assert crowds


def read_voc_objects(root, name):
    """Boxes by VOC's rule: pixels count from 1, the last one included; 1 less at the minimum gives exclusive ends."""
    objects = []
    for each in ElementTree.parse(root / "Annotations" / f"{name}.xml").iter("object"):
        box = [int(each.find(f"bndbox/{tag}").text) for tag in ("xmin", "ymin", "xmax", "ymax")]
        objects.append((each.find("name").text, [box[0] - 1, box[1] - 1, box[2], box[3]]))
    return objects


@pytest.mark.parametrize(("voc", "split"), [("trainval", "train2017"), ("test", "val2017")])
def test_both_layouts_have_the_same_images_and_boxes(toy, coco, voc, split):
    ground_truth, root = coco(split), toy / "VOC2007"
    names = (root / f"ImageSets/Main/{voc}.txt").read_text().split()
    assert len(names) == len(ground_truth.imgs)
    for name, image in zip(names, ground_truth.imgs.values(), strict=True):
        path = root / f"JPEGImages/{name}.jpg"
        assert path.read_bytes() == (toy / "coco" / split / image["file_name"]).read_bytes()
        assert Image.open(path).size == (image["width"], image["height"])
        coco_objects = [
            (ground_truth.cats[each["category_id"]]["name"], [x, y, x + w, y + h])
            for each in ground_truth.imgToAnns[image["id"]]
            for x, y, w, h in [each["bbox"]]
        ]
        assert read_voc_objects(root, name) == coco_objects


def test_voc_class_lists_agree_with_the_annotations(toy):
    root = toy / "VOC2007"
    for category in CLASSES:
        for line in (root / f"ImageSets/Main/{category}_test.txt").read_text().splitlines():
            name, presence = line.split()
            objects = ElementTree.parse(root / f"Annotations/{name}.xml").iter("object")
            difficult = [int(each.find("difficult").text) for each in objects if each.find("name").text == category]
            assert int(presence) == (-1 if not difficult else 0 if all(difficult) else 1)


def test_crops_have_the_given_size_and_number(tmp_path):
    toy = make_toy_data(tmp_path / "toy", ToyDataSettings(scenes=4, crops=50, crop_size=64), workers=1)
    crops = list((toy / "crops").rglob("*.png"))
    assert len(crops) == 50
    assert len([path for path in crops if path.parts[-3] == "test"]) == 10
    assert {Image.open(path).size for path in crops} == {(64, 64)}
    assert {path.parent.name for path in crops} <= set(CLASSES)


def test_same_seed_same_bytes_on_any_number_of_workers_and_another_seed_differs(tmp_path):
    one = read_files(make_toy_data(tmp_path / "one", SMALL, workers=1))
    three = read_files(make_toy_data(tmp_path / "three", SMALL, workers=3))
    other = read_files(make_toy_data(tmp_path / "other", ToyDataSettings(scenes=8, crops=10, seed=1), workers=2))
    assert one == three
    images = [name for name in one if name.suffix == ".jpg"]
    assert all(one[name] != other[name] for name in images)


def test_complete_toy_data_are_kept_and_other_settings_replace_them(tmp_path):
    toy = make_toy_data(tmp_path / "toy", SMALL, workers=1)
    before = (toy / MANIFEST).stat().st_mtime_ns
    make_toy_data(toy, SMALL, workers=1)
    assert (toy / MANIFEST).stat().st_mtime_ns == before
    make_toy_data(toy, ToyDataSettings(scenes=4, crops=10), workers=1)
    assert len(list((toy / "coco/train2017").iterdir())) == 2


def test_the_manifest_hashes_every_file(toy):
    manifest = json.loads((toy / MANIFEST).read_text())
    listed = set(manifest["files"])
    assert listed == {str(name) for name in read_files(toy)} - {MANIFEST}
    name = next(iter(listed))
    assert manifest["files"][name] == sha256(toy / name)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / ".toy.making").mkdir()
    with pytest.raises(UserError, match="holds other files than toy data"):
        make_toy_data(tmp_path, SMALL)
    assert read_files(tmp_path) == {Path("thesis.tex"): b"years of work"}
    with pytest.raises(UserError, match="is a file"):
        make_toy_data(tmp_path / "thesis.tex", SMALL)


def test_toy_data_with_other_files_are_refused(tmp_path):
    toy = make_toy_data(tmp_path / "toy", SMALL, workers=1)
    (toy / "results").mkdir()
    (toy / "results/model.pth").write_text("trained for a week")
    with pytest.raises(UserError, match=r"other files than toy data, such as model\.pth"):
        make_toy_data(toy, ToyDataSettings(scenes=8, crops=10, seed=1))
    assert (toy / "results/model.pth").read_text() == "trained for a week"


def test_toy_data_with_a_missing_file_are_made_again(tmp_path):
    toy = make_toy_data(tmp_path / "toy", SMALL, workers=1)
    complete = read_files(toy)
    (toy / "VOC2007/JPEGImages/000001.jpg").unlink()
    assert read_files(make_toy_data(toy, SMALL, workers=1)) == complete


def test_the_current_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for out in (".", ".."):
        with pytest.raises(UserError, match="is the current folder"):
            make_toy_data(out, SMALL)


def test_toy_data_of_a_newer_version_are_not_replaced(tmp_path):
    toy = make_toy_data(tmp_path / "toy", SMALL, workers=1)
    manifest = json.loads((toy / MANIFEST).read_text())
    (toy / MANIFEST).write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(UserError, match="newer ssql_det"):
        make_toy_data(toy, SMALL)


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        as_pipe,
        lambda path: path.write_text("[" * 99999),
        lambda path: path.write_text(json.dumps({"format": "ssql_det toy data", "version": "2", "files": {}})),
    ],
)
def test_a_folder_with_a_damaged_manifest_is_not_replaced(spoil, tmp_path):
    toy = make_toy_data(tmp_path / "toy", SMALL, workers=1)
    spoil(toy / MANIFEST)
    with pytest.raises(UserError, match="holds other files than toy data"):
        make_toy_data(toy, SMALL)


def test_several_processes_can_make_one_folder(tmp_path):
    code = (
        "import sys; from ssql_det.toydata.dataset import *;"
        " make_toy_data(sys.argv[1], ToyDataSettings(scenes=8, crops=10))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "toy")]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert read_files(tmp_path / "toy") == read_files(make_toy_data(tmp_path / "alone", SMALL))


@pytest.mark.parametrize("seed", range(5))
def test_every_split_has_an_object_even_with_few_scenes(tmp_path, seed):
    toy = make_toy_data(tmp_path / "toy", ToyDataSettings(scenes=4, crops=5, seed=seed), workers=1)
    for split in ("train2017", "val2017"):
        assert json.loads((toy / f"coco/annotations/instances_{split}.json").read_text())["annotations"]


@pytest.mark.parametrize(
    "fields",
    [
        {"scenes": 0},
        {"crops": 0},
        {"crop_size": 48},
        {"least_side": 0},
        {"least_side": 300, "most_side": 200},
        {"seed": -1},
    ],
)
def test_invalid_settings_are_refused(fields):
    with pytest.raises(UserError, match="must be"):
        ToyDataSettings(**fields)


MAKE = (
    "import sys; from ssql_det.toydata.dataset import *;"
    " make_toy_data(sys.argv[1], ToyDataSettings(scenes=40, crops=5000), 1)"
)


def test_after_a_kill_there_is_no_incomplete_folder(tmp_path):
    folder = tmp_path / "toy"
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(folder)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob(".toy.*.making/VOC2007/JPEGImages")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    make_toy_data(folder, SMALL, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_full_disk_is_one_sentence_and_leaves_no_files(tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    code = "from ssql_det.cli.main import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "make-toy-data", str(tmp_path / "toy"), "--scenes", "8", "--crops", "10"],
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(f"error: could not make toy data in {tmp_path}/toy: File too large")
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())
