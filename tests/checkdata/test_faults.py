"""Each fault is planted alone into a sound data set; the check has to find it and name the file."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ssql_det.cli.main import main


@pytest.fixture
def data(toy, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(toy, tmp_path / "data"))


def check(capsys, root, *arguments):
    """Exit code, and everything said, without the table's width."""
    code = 0
    try:
        main(["check-data", str(root), *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    return code, output.out + output.err


def test_sound_data_pass_and_are_told_how_to_be_used(toy, capsys):
    code, said = check(capsys, toy)
    assert code == 0
    assert f"export DETECTRON2_DATASETS={toy.resolve()}" in said
    assert "error" not in said.replace("errors", "")
    rows = re.findall(r"^ +(VOC\S+ \S+|coco \S+) +(\d+) +(\d+) +(\d+) +(\d+)", said, flags=re.M)
    assert [row[0] for row in rows] == [
        *("VOC2007 trainval", "VOC2007 test", "VOC2012 trainval", "coco train2017", "coco val2017")
    ]
    assert [row[1] for row in rows] == ["30", "15", "15", "30", "15"]
    assert [row[2] for row in rows[:2]] == [row[2] for row in rows[3:]]


# ---- VOC: name -> (how to spoil VOC2007, the file it has to name, what it has to say) ----------------------------


def edit(path, pattern, replacement):
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.S)
    assert count == 1
    path.write_text(text)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


XML, JPEG, LIST = "Annotations/000001.xml", "JPEGImages/000001.jpg", "ImageSets/Main/trainval.txt"
VOC_FAULTS = {
    "no image folder": (lambda voc: shutil.rmtree(voc / "JPEGImages"), "JPEGImages", "folder is missing"),
    "no annotation folder": (lambda voc: shutil.rmtree(voc / "Annotations"), "Annotations", "folder is missing"),
    "no lists": (lambda voc: shutil.rmtree(voc / "ImageSets"), "ImageSets/Main", "folder is missing"),
    "no list of the split": (lambda voc: (voc / LIST).unlink(), LIST, "list of the split's images is missing"),
    "empty list": (lambda voc: (voc / LIST).write_text("\n"), LIST, "list is empty"),
    "repeated name": (lambda voc: edit(voc / LIST, r"\A", "000002\n"), LIST, "000002 is listed more than once"),
    "unknown name": (lambda voc: edit(voc / LIST, r"\A", "999999\n"), "Annotations/999999.xml", "is missing"),
    "missing image": (lambda voc: (voc / JPEG).unlink(), JPEG, "image is missing"),
    "image that is a pipe": (
        lambda voc: ((voc / JPEG).unlink(), os.mkfifo(voc / JPEG)),
        *(JPEG, "image is missing, or is no file"),
    ),
    "name that plays tricks": (
        lambda voc: edit(voc / LIST, r"\A", "a\x1b[31mb\n"),
        *("Annotations/a\\x1b[31mb.xml", "is missing"),
    ),
    "image cut short": (lambda voc: cut_short(voc / JPEG), JPEG, "cannot be read"),
    "empty image": (lambda voc: (voc / JPEG).write_bytes(b""), JPEG, "cannot be read"),
    "image of another size": (lambda voc: Image.new("RGB", (5, 7)).save(voc / JPEG), JPEG, "5x7, its annotation says"),
    "missing annotation": (lambda voc: (voc / XML).unlink(), XML, "annotation is missing"),
    "broken XML": (lambda voc: cut_short(voc / XML), XML, "annotation cannot be read"),
    "no size": (lambda voc: edit(voc / XML, "<size>.*?</size>", ""), XML, "no size/width"),
    "inverted box": (lambda voc: edit(voc / XML, r"<xmin>\d+<", "<xmin>9999<"), XML, "empty or inverted box"),
    "no corner": (lambda voc: edit(voc / XML, "<ymax>.*?</ymax>", ""), XML, "no bndbox/ymax"),
    "corner that is no number": (lambda voc: edit(voc / XML, "<ymax>.*?<", "<ymax>low<"), XML, "cannot be read"),
    "no class": (lambda voc: edit(voc / XML, "<name>.*?</name>", ""), XML, "has no name"),
}


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_voc_faults(data, capsys, fault):
    spoil, file, says = VOC_FAULTS[fault]
    spoil(data / "VOC2007")
    code, said = check(capsys, data, "--dataset", "voc")
    assert code == 2
    assert re.search(f"error: {re.escape(str(data / 'VOC2007' / file))}: .*{re.escape(says)}", said)


# ---- COCO --------------------------------------------------------------------------------------------------------

INSTANCES = "annotations/instances_train2017.json"


def annotated(document):
    return next(each for each in document["annotations"] if not each["iscrowd"])


def crowd(document):
    return next(each for each in document["annotations"] if each["iscrowd"])


COCO_FAULTS = {
    "image id twice": (lambda d: d["images"].append(dict(d["images"][0])), "given to more than one of its images"),
    "annotation id twice": (lambda d: d["annotations"].append(dict(d["annotations"][0])), "one of its annotations"),
    "category id twice": (lambda d: d["categories"].append(dict(d["categories"][0])), "one of its categories"),
    "unknown image": (lambda d: annotated(d).update(image_id=777), "of image 777, which is not in the file"),
    "unknown category": (lambda d: annotated(d).update(category_id=77), "of category 77, which is not in the file"),
    "empty box": (lambda d: annotated(d).update(bbox=[3, 3, 0, 5]), "empty or inverted box"),
    "inverted box": (lambda d: annotated(d).update(bbox=[30, 30, -5, 5]), "empty or inverted box"),
    "NaN box": (lambda d: annotated(d).update(bbox=[float("nan"), 3, 5, 5]), "no bbox of four numbers"),
    "no box": (lambda d: annotated(d).pop("bbox"), "no bbox of four numbers"),
    "box of words": (lambda d: annotated(d).update(bbox=["a", "b", "c", "d"]), "no bbox of four numbers"),
    "polygon of two corners": (lambda d: annotated(d).update(segmentation=[[1, 2, 3, 4]]), "fewer than three corners"),
    "endless box": (lambda d: annotated(d).update(bbox=[3, 3, 1e300, 5]), "no bbox of four numbers"),
    "polygon of NaN": (lambda d: annotated(d).update(segmentation=[[1, 2, 3, float("nan"), 5, 6]]), "three corners"),
    "endless polygon": (lambda d: annotated(d).update(segmentation=[[1, 2, 3, 10**400, 5, 6]]), "three corners"),
    "no polygon": (lambda d: annotated(d).update(segmentation=[]), "empty list of polygons"),
    "crowd of polygons": (lambda d: crowd(d).update(segmentation=[[1, 1, 2, 2, 3, 1]]), "crowd with polygons"),
    "run lengths of another size": (lambda d: crowd(d)["segmentation"].update(size=[9, 9]), "mask of size [9, 9]"),
    "run lengths too short": (lambda d: crowd(d)["segmentation"]["counts"].pop(), "run-length mask of"),
    "image without a size": (lambda d: d["images"][0].pop("width"), "lacks one of file_name, width, height"),
    "run lengths without counts": (
        lambda d: crowd(d)["segmentation"].pop("counts"),
        "run-length mask without whole counts",
    ),
    "compressed run lengths": (lambda d: crowd(d)["segmentation"].update(counts="x"), "run-length mask"),
    "negative run lengths": (lambda d: crowd(d)["segmentation"].update(counts=[-5, 10**6]), "without whole counts"),
    "endless image": (lambda d: d["images"][0].update(width=float("inf")), "lacks one of file_name"),
    "an image that is a number": (lambda d: d["images"].append(5), "some of its images have no id"),
    "no list": (lambda d: d.pop("categories"), "has no list 'categories'"),
    "nothing annotated": (lambda d: d["annotations"].clear(), "no image has an object"),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_coco_faults(data, capsys, fault):
    spoil, says = COCO_FAULTS[fault]
    path = data / "coco" / INSTANCES
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    code, said = check(capsys, data, "--dataset", "coco")
    assert code == 2
    assert re.search(f"error: {re.escape(str(path))}: .*{re.escape(says)}", said)


COCO_FILE_FAULTS = {
    "no file": (lambda coco: (coco / INSTANCES).unlink(), INSTANCES, "annotation file is missing"),
    "broken JSON": (lambda coco: cut_short(coco / INSTANCES), INSTANCES, "not valid JSON"),
    "not UTF-8": (lambda coco: (coco / INSTANCES).write_bytes(b"\xff\xfe\x00"), INSTANCES, "not valid JSON"),
    "a list": (lambda coco: (coco / INSTANCES).write_text("[]"), INSTANCES, "has no list 'images'"),
    "no images": (lambda coco: shutil.rmtree(coco / "train2017"), "train2017", "folder of images is missing"),
    "missing image": (
        lambda coco: (coco / "train2017/000000000001.jpg").unlink(),
        "train2017/000000000001.jpg",
        "image is missing",
    ),
    "a page for an image": (
        lambda coco: (coco / "train2017/000000000001.jpg").write_text("<html>404</html>"),
        "train2017/000000000001.jpg",
        "cannot be read",
    ),
}


@pytest.mark.parametrize("fault", COCO_FILE_FAULTS)
def test_coco_files(data, capsys, fault):
    spoil, file, says = COCO_FILE_FAULTS[fault]
    spoil(data / "coco")
    code, said = check(capsys, data, "--dataset", "coco")
    assert code == 2
    assert re.search(f"error: {re.escape(str(data / 'coco' / file))}: .*{re.escape(says)}", said)


# ---- what does not end a training is a warning --------------------------------------------------------------------


def test_a_box_that_leaves_its_image_is_a_warning(data, capsys):
    edit(data / "VOC2007" / XML, r"<xmax>\d+<", "<xmax>9999<")
    code, said = check(capsys, data)
    assert code == 0
    assert re.search(rf"warning: .*{XML}: object 1 .*that leaves the image", said)


def test_a_class_without_objects_is_a_warning(data, capsys):
    path = data / "coco" / INSTANCES
    document = json.loads(path.read_text())
    document["categories"].append({"id": 11, "name": "ten"})
    path.write_text(json.dumps(document))
    code, said = check(capsys, data)
    assert code == 0
    assert f"warning: {path}: no object of ten" in said


def test_training_images_among_the_test_images_are_a_warning(data, capsys):
    with open(data / "VOC2007/ImageSets/Main/test.txt", "a") as listing:
        listing.write("000001\n")
    code, said = check(capsys, data)
    assert code == 0
    assert "1 images are in VOC2007 trainval too, 000001 first" in said


def test_the_published_counts_are_compared_where_the_classes_are_the_published_ones(data, capsys):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for path in (data / "VOC2007/Annotations").iterdir():
        path.write_text(
            re.sub("<name>(.*?)</name>", lambda m: f"<name>{VOC_TEN[names.index(m[1])]}</name>", path.read_text())
        )
    code, said = check(capsys, data, "--dataset", "voc")
    assert code == 0
    assert "30 images, the published split has 5011" in said
    assert "15 images, the published split has 4952" in said
    edit(data / "VOC2007" / XML, "<name>.*?<", "<name>unicorn<")
    code, said = check(capsys, data, "--dataset", "voc")
    assert code == 2
    assert "class 'unicorn' is none of VOC's twenty" in said


VOC_TEN = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]


# ---- how it is asked ----------------------------------------------------------------------------------------------


def test_a_users_own_coco_file(data, capsys):
    code, said = check(capsys, data / "coco/train2017", "--dataset", data / "coco" / INSTANCES)
    assert code == 0
    assert "instances_train2017" in said


def test_compressed_run_lengths_are_read_as_coco_reads_them(data, capsys):
    path = data / "coco" / INSTANCES
    document = json.loads(path.read_text())
    for each in document["annotations"]:
        if isinstance(each["segmentation"], dict):
            runs = coco_mask.frPyObjects(each["segmentation"], *each["segmentation"]["size"])
            each["segmentation"]["counts"] = runs["counts"].decode()
    path.write_text(json.dumps(document))
    assert check(capsys, data, "--dataset", "coco", "--draw", 40, data / "sheet.png")[0] == 0


def test_a_contact_sheet_never_replaces_an_image(data, capsys):
    picture = (data / "coco/train2017/000000000001.jpg").rename(data / "coco/train2017/first.png")
    document = json.loads((data / "coco" / INSTANCES).read_text())
    document["images"][0]["file_name"] = "first.png"
    (data / "coco" / INSTANCES).write_text(json.dumps(document))
    before = picture.read_bytes()
    code, said = check(capsys, data, "--dataset", "coco", "--draw", 4, picture)
    assert (code, picture.read_bytes()) == (2, before)
    assert "is an image of the data set" in said


def test_an_odd_list_is_named(data, capsys):
    (data / "VOC2007" / LIST).write_bytes(b"\xff\xfe")
    code, said = check(capsys, data, "--dataset", "voc")
    assert (code, "the list cannot be read" in said) == (2, True)


def test_quick_reads_headers_only(data, capsys):
    cut_short(data / "VOC2007" / JPEG)
    assert check(capsys, data, "--quick")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "imagenet"], "--dataset is voc, coco or the path"),
        (["--dataset", "absent.json"], "annotation file is missing"),
        (["--draw", "many", "sheet.png"], "--draw wants a number"),
        (["--draw", "²", "sheet.png"], "--draw wants a number"),
        (["--draw", "4", "sheet.jpg"], "--draw writes a PNG"),
        (["--draw", "4", "absent/sheet.png"], "there is no folder absent"),
        (["--workers", "-1"], "'-1' is not a whole number, 1 or more"),
        (["--most", "0"], "'0' is not a whole number"),
        (["--draw", "0", "sheet.png"], "--draw wants a number from 1 to 100"),
    ],
)
def test_wrong_questions(toy, capsys, arguments, says):
    code, said = check(capsys, toy, *arguments)
    assert (code, says in said) == (2, True)


def test_a_folder_without_a_data_set_is_told_what_is_looked_for(tmp_path, capsys):
    code, said = check(capsys, tmp_path)
    assert code == 2
    assert "no folder VOC2007, VOC2012 or coco in it; give its parent folder" in said
    code, said = check(capsys, tmp_path / "absent")
    assert code == 2
    assert "there is no folder" in said


def test_a_contact_sheet_is_drawn(toy, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert check(capsys, toy, "--dataset", "coco", "--draw", 4, sheet)[0] == 0
    with Image.open(sheet) as image:
        assert image.size == (1288, 1288)
        assert len(image.getcolors(maxcolors=1 << 24)) > 1000
