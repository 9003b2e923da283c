"""Each problem is put alone into a valid data set; the check must find it and name the file."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ssql_det.checkdata.draw import draw_annotations
from ssql_det.checkdata.findings import AnnotatedImage
from ssql_det.cli.main import main
from ssql_det.core.errors import UserError


@pytest.fixture
def data(toy, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(toy, tmp_path / "data"))


def check(capsys, root, *arguments):
    """The exit code and all output."""
    code = 0
    try:
        main(["check-data", str(root), *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    return code, output.out + output.err


def test_valid_data_pass_and_the_variable_to_set_is_printed(toy, capsys):
    code, printed = check(capsys, toy)
    assert code == 0
    assert f"export DETECTRON2_DATASETS={toy.resolve()}" in printed
    assert "error" not in printed.replace("errors", "")
    rows = re.findall(r"^ +(VOC\S+ \S+|coco \S+) +(\d+) +(\d+) +(\d+) +(\d+)", printed, flags=re.M)
    assert [row[0] for row in rows] == [
        *("VOC2007 trainval", "VOC2007 test", "VOC2012 trainval", "coco train2017", "coco val2017")
    ]
    assert [row[1] for row in rows] == ["30", "15", "15", "30", "15"]
    assert [row[2] for row in rows[:2]] == [row[2] for row in rows[3:]]


# ---- VOC: name -> (how to damage VOC2007, the file to name, the message) ------------------------------------------


def edit(path, pattern, replacement):
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.S)
    assert count == 1
    path.write_text(text)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


XML, JPEG, LIST = "Annotations/000001.xml", "JPEGImages/000001.jpg", "ImageSets/Main/trainval.txt"
VOC_PROBLEMS = {
    "no image folder": (lambda voc: shutil.rmtree(voc / "JPEGImages"), "JPEGImages", "folder is missing"),
    "no annotation folder": (lambda voc: shutil.rmtree(voc / "Annotations"), "Annotations", "folder is missing"),
    "no lists": (lambda voc: shutil.rmtree(voc / "ImageSets"), "ImageSets/Main", "folder is missing"),
    "no list of the split": (lambda voc: (voc / LIST).unlink(), LIST, "list of the split's images is missing"),
    "empty list": (lambda voc: (voc / LIST).write_text("\n"), LIST, "list is empty"),
    "repeated name": (lambda voc: edit(voc / LIST, r"\A", "000002\n"), LIST, "000002 is listed more than once"),
    "unknown name": (lambda voc: edit(voc / LIST, r"\A", "999999\n"), "Annotations/999999.xml", "is missing"),
    "name that is too long": (
        lambda voc: edit(voc / LIST, r"\A", f"{'9' * 300}\n"),
        *(f"Annotations/{'9' * 300}.xml", "annotation is missing"),
    ),
    "missing image": (lambda voc: (voc / JPEG).unlink(), JPEG, "image is missing"),
    "image that is a pipe": (
        lambda voc: ((voc / JPEG).unlink(), os.mkfifo(voc / JPEG)),
        *(JPEG, "image is missing or not a regular file"),
    ),
    "name with control characters": (
        lambda voc: edit(voc / LIST, r"\A", "a\x1b[31mb\n"),
        *("Annotations/a\\x1b[31mb.xml", "is missing"),
    ),
    "truncated image": (lambda voc: truncate(voc / JPEG), JPEG, "cannot be read"),
    "empty image": (lambda voc: (voc / JPEG).write_bytes(b""), JPEG, "cannot be read"),
    "image of another size": (lambda voc: Image.new("RGB", (5, 7)).save(voc / JPEG), JPEG, "5x7, but"),
    "missing annotation": (lambda voc: (voc / XML).unlink(), XML, "annotation is missing"),
    "broken XML": (lambda voc: truncate(voc / XML), XML, "annotation cannot be read"),
    "no size": (lambda voc: edit(voc / XML, "<size>.*?</size>", ""), XML, "no size/width"),
    "inverted box": (lambda voc: edit(voc / XML, r"<xmin>\d+<", "<xmin>9999<"), XML, "empty or inverted box"),
    "no corner": (lambda voc: edit(voc / XML, "<ymax>.*?</ymax>", ""), XML, "no bndbox/ymax"),
    "corner that is not a number": (lambda voc: edit(voc / XML, "<ymax>.*?<", "<ymax>low<"), XML, "cannot be read"),
    "no class": (lambda voc: edit(voc / XML, "<name>.*?</name>", ""), XML, "has no name"),
}


@pytest.mark.parametrize("problem", VOC_PROBLEMS)
def test_voc_problems(data, capsys, problem):
    damage, file, message = VOC_PROBLEMS[problem]
    damage(data / "VOC2007")
    code, printed = check(capsys, data, "--dataset", "voc")
    assert code == 2
    assert re.search(f"error: {re.escape(str(data / 'VOC2007' / file))}: .*{re.escape(message)}", printed)


# ---- COCO --------------------------------------------------------------------------------------------------------

INSTANCES = "annotations/instances_train2017.json"


def find_object(document):
    return next(each for each in document["annotations"] if not each["iscrowd"])


def find_crowd(document):
    return next(each for each in document["annotations"] if each["iscrowd"])


COCO_PROBLEMS = {
    "image id twice": (lambda d: d["images"].append(dict(d["images"][0])), "more than one of its images have the id"),
    "annotation id twice": (
        lambda d: d["annotations"].append(dict(d["annotations"][0])),
        "more than one of its annotations have the id",
    ),
    "category id twice": (
        lambda d: d["categories"].append(dict(d["categories"][0])),
        "more than one of its categories have the id",
    ),
    "unknown image": (lambda d: find_object(d).update(image_id=777), "of image 777, which is not in the file"),
    "unknown category": (lambda d: find_object(d).update(category_id=77), "of category 77, which is not in the file"),
    "empty box": (lambda d: find_object(d).update(bbox=[3, 3, 0, 5]), "empty or inverted box"),
    "inverted box": (lambda d: find_object(d).update(bbox=[30, 30, -5, 5]), "empty or inverted box"),
    "NaN box": (lambda d: find_object(d).update(bbox=[float("nan"), 3, 5, 5]), "no bbox of four numbers"),
    "no box": (lambda d: find_object(d).pop("bbox"), "no bbox of four numbers"),
    "box of strings": (lambda d: find_object(d).update(bbox=["a", "b", "c", "d"]), "no bbox of four numbers"),
    "polygon of two corners": (
        lambda d: find_object(d).update(segmentation=[[1, 2, 3, 4]]),
        "fewer than three corners",
    ),
    "huge box": (lambda d: find_object(d).update(bbox=[3, 3, 1e300, 5]), "no bbox of four numbers"),
    "polygon of NaN": (
        lambda d: find_object(d).update(segmentation=[[1, 2, 3, float("nan"), 5, 6]]),
        "of at most 1e+06",
    ),
    "huge polygon": (lambda d: find_object(d).update(segmentation=[[1, 2, 3, 10**400, 5, 6]]), "of at most 1e+06"),
    "long polygon": (
        lambda d: find_object(d).update(segmentation=[[0, 0, 9e5, 9e5]]),
        "whose outline is more than 100 times its image's width and height",
    ),
    "huge image": (lambda d: d["images"][0].update(width=30_000, height=30_000), "30000x30000, but the most is"),
    "polygon of numbers": (lambda d: find_object(d).update(segmentation=[1, 2, 3, 4, 5, 6]), "not a list of numbers"),
    "mask of text": (lambda d: find_object(d).update(segmentation="5"), "neither a list of polygons nor RLE"),
    "no polygon": (lambda d: find_object(d).update(segmentation=[]), "empty list of polygons"),
    "crowd of polygons": (lambda d: find_crowd(d).update(segmentation=[[1, 1, 2, 2, 3, 1]]), "crowd with polygons"),
    "RLE of another size": (lambda d: find_crowd(d)["segmentation"].update(size=[9, 9]), "mask of size [9, 9]"),
    "RLE too short": (lambda d: find_crowd(d)["segmentation"]["counts"].pop(), "RLE mask of"),
    "image without a size": (lambda d: d["images"][0].pop("width"), "lacks a file_name, or a width and height"),
    "RLE without counts": (
        lambda d: find_crowd(d)["segmentation"].pop("counts"),
        "RLE mask whose counts are not whole numbers",
    ),
    "invalid compressed RLE": (lambda d: find_crowd(d)["segmentation"].update(counts="x"), "RLE mask"),
    "negative counts": (
        lambda d: find_crowd(d)["segmentation"].update(counts=[-5, 10**6]),
        "counts are not whole numbers",
    ),
    "infinite image": (lambda d: d["images"][0].update(width=float("inf")), "lacks a file_name, or a width"),
    "an image that is a number": (lambda d: d["images"].append(5), "some of its images have no id"),
    "no list": (lambda d: d.pop("categories"), "has no list 'categories'"),
    "nothing annotated": (lambda d: d["annotations"].clear(), "no image has an object"),
}


@pytest.mark.parametrize("problem", COCO_PROBLEMS)
def test_coco_problems(data, capsys, problem):
    damage, message = COCO_PROBLEMS[problem]
    path = data / "coco" / INSTANCES
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    code, printed = check(capsys, data, "--dataset", "coco")
    assert code == 2
    assert re.search(f"error: {re.escape(str(path))}: .*{re.escape(message)}", printed)


COCO_FILE_PROBLEMS = {
    "no file": (lambda coco: (coco / INSTANCES).unlink(), INSTANCES, "annotation file is missing"),
    "broken JSON": (lambda coco: truncate(coco / INSTANCES), INSTANCES, "not valid JSON"),
    "not UTF-8": (lambda coco: (coco / INSTANCES).write_bytes(b"\xff\xfe\x00"), INSTANCES, "not valid JSON"),
    "a list": (lambda coco: (coco / INSTANCES).write_text("[]"), INSTANCES, "has no list 'images'"),
    "no images": (lambda coco: shutil.rmtree(coco / "train2017"), "train2017", "folder of images is missing"),
    "missing image": (
        lambda coco: (coco / "train2017/000000000001.jpg").unlink(),
        "train2017/000000000001.jpg",
        "image is missing",
    ),
    "a web page instead of an image": (
        lambda coco: (coco / "train2017/000000000001.jpg").write_text("<html>404</html>"),
        "train2017/000000000001.jpg",
        "cannot be read",
    ),
}


@pytest.mark.parametrize("problem", COCO_FILE_PROBLEMS)
def test_coco_file_problems(data, capsys, problem):
    damage, file, message = COCO_FILE_PROBLEMS[problem]
    damage(data / "coco")
    code, printed = check(capsys, data, "--dataset", "coco")
    assert code == 2
    assert re.search(f"error: {re.escape(str(data / 'coco' / file))}: .*{re.escape(message)}", printed)


# ---- warnings -----------------------------------------------------------------------------------------------------


def test_a_box_that_exceeds_its_image_is_a_warning(data, capsys):
    edit(data / "VOC2007" / XML, r"<xmax>\d+<", "<xmax>9999<")
    code, printed = check(capsys, data)
    assert code == 0
    assert re.search(rf"warning: .*{XML}: object 1 .*that exceeds the image", printed)


def test_a_class_without_objects_is_a_warning(data, capsys):
    path = data / "coco" / INSTANCES
    document = json.loads(path.read_text())
    document["categories"].append({"id": 11, "name": "ten"})
    path.write_text(json.dumps(document))
    code, printed = check(capsys, data)
    assert code == 0
    assert f"warning: {path}: the split has no object of ten" in printed


def test_an_object_of_id_0_is_a_warning(data, capsys):
    path = data / "coco" / INSTANCES
    document = json.loads(path.read_text())
    document["annotations"][0]["id"] = 0
    path.write_text(json.dumps(document))
    code, printed = check(capsys, data)
    assert (code, f"warning: {path}: an annotation has the id 0" in printed) == (0, True)


def test_train_images_in_the_test_split_are_a_warning(data, capsys):
    with open(data / "VOC2007/ImageSets/Main/test.txt", "a") as listing:
        listing.write("000001\n")
    code, printed = check(capsys, data)
    assert code == 0
    assert "1 images are in VOC2007 trainval too, such as 000001" in printed


def test_image_counts_are_compared_if_the_classes_are_vocs(data, capsys):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for path in (data / "VOC2007/Annotations").iterdir():
        path.write_text(
            re.sub("<name>(.*?)</name>", lambda m: f"<name>{VOC_TEN[names.index(m[1])]}</name>", path.read_text())
        )
    code, printed = check(capsys, data, "--dataset", "voc")
    assert code == 0
    assert "30 images, the published split has 5011" in printed
    assert "15 images, the published split has 4952" in printed
    edit(data / "VOC2007" / XML, "<name>.*?<", "<name>unicorn<")
    code, printed = check(capsys, data, "--dataset", "voc")
    assert code == 2
    assert "class 'unicorn' is not one of VOC's twenty" in printed


VOC_TEN = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]


# ---- options ------------------------------------------------------------------------------------------------------


def test_a_users_own_coco_file(data, capsys):
    code, printed = check(capsys, data / "coco/train2017", "--dataset", data / "coco" / INSTANCES)
    assert code == 0
    assert "instances_train2017" in printed


def test_compressed_rle_is_valid(data, capsys):
    path = data / "coco" / INSTANCES
    document = json.loads(path.read_text())
    for each in document["annotations"]:
        if isinstance(each["segmentation"], dict):
            rle = coco_mask.frPyObjects(each["segmentation"], *each["segmentation"]["size"])
            each["segmentation"]["counts"] = rle["counts"].decode()
    path.write_text(json.dumps(document))
    assert check(capsys, data, "--dataset", "coco", "--draw", 40, data / "sheet.png")[0] == 0


def test_a_contact_sheet_never_replaces_an_image(data, capsys):
    image = (data / "coco/train2017/000000000001.jpg").rename(data / "coco/train2017/first.png")
    document = json.loads((data / "coco" / INSTANCES).read_text())
    document["images"][0]["file_name"] = "first.png"
    (data / "coco" / INSTANCES).write_text(json.dumps(document))
    before = image.read_bytes()
    code, printed = check(capsys, data, "--dataset", "coco", "--draw", 4, image)
    assert (code, image.read_bytes()) == (2, before)
    assert "is an image of the data set" in printed


def test_an_unreadable_list_is_an_error(data, capsys):
    (data / "VOC2007" / LIST).write_bytes(b"\xff\xfe")
    code, printed = check(capsys, data, "--dataset", "voc")
    assert (code, "the list cannot be read" in printed) == (2, True)


def test_quick_reads_headers_only(data, capsys):
    truncate(data / "VOC2007" / JPEG)
    assert check(capsys, data, "--quick")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "imagenet"], "--dataset must be voc, coco or the path"),
        (["--dataset", "absent.json"], "annotation file is missing"),
        (["--draw", "many", "sheet.png"], "--draw needs a number"),
        (["--draw", "²", "sheet.png"], "--draw needs a number"),
        (["--draw", "4", "sheet.jpg"], "--draw writes a PNG"),
        (["--draw", "4", "absent/sheet.png"], "there is no folder absent"),
        (["--workers", "-1"], "'-1' is not a whole number, 1 or more"),
        (["--most", "0"], "'0' is not a whole number"),
        (["--draw", "0", "sheet.png"], "--draw needs a number from 1 to 100"),
    ],
)
def test_invalid_options_are_refused(toy, capsys, arguments, message):
    code, printed = check(capsys, toy, *arguments)
    assert (code, message in printed) == (2, True)


def test_the_error_for_a_folder_without_a_data_set_names_the_expected_folders(tmp_path, capsys):
    code, printed = check(capsys, tmp_path)
    assert code == 2
    assert "has no folder VOC2007, VOC2012 or coco in it; give their parent" in printed
    code, printed = check(capsys, tmp_path / "absent")
    assert code == 2
    assert "there is no folder" in printed


def test_a_contact_sheet_is_drawn(toy, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert check(capsys, toy, "--dataset", "coco", "--draw", 4, sheet)[0] == 0
    with Image.open(sheet) as image:
        width, height = image.size
        assert width <= 2 * 644
        assert height <= 2 * 670 + 26 * 2
        assert len(image.getcolors(maxcolors=1 << 24)) > 1000


def test_a_name_that_is_no_text_is_drawn(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.png")
    Image.new("RGB", (40, 30)).save(path)
    annotated = AnnotatedImage(path, None, ((5, 20, 15, 25),), ("\udcff",), (None,))
    drawn = draw_annotations(annotated, {"\udcff": 0}, enlarged_to=40)
    assert drawn.shape == (30, 40, 3)
    assert drawn.any()


def test_an_invalid_mask_is_named(tmp_path):
    Image.new("RGB", (40, 30)).save(path := tmp_path / "a.png")
    annotated = AnnotatedImage(path, None, ((5, 20, 15, 25),), ("cat",), ({"size": [30, 40], "counts": [1]},))
    with pytest.raises(UserError, match=r"a\.png: a mask is invalid \(the runs have 1 pixels"):
        draw_annotations(annotated, {"cat": 0})
