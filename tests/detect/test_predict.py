"""Detections on a user's images: which images, what is drawn and written, and what is refused."""

import json
import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from support.detect.configs import C4, CONFIGS, FPN, config, randomize_norms, tiny_overrides

from ssql_det.cli.main import main
from ssql_det.cli.predict import _split_keys_and_images
from ssql_det.core.errors import UserError
from ssql_det.detect.detector import build_detector
from ssql_det.detect.predict import find_annotations, get_category_ids, load_image
from ssql_det.images.reading import find_images


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in (C4, FPN):
        torch.manual_seed(0)
        torch.save({"model": randomize_norms(build_detector(config(name))).state_dict()}, folder / f"{name}.pth")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two images in a folder, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("b.png", (60, 90, 3)), ("a.jpg", (80, 50, 3))):
        cv2.imwrite(str(folder / name), cv2.resize(generator.integers(0, 255, (8, 8, 3), np.uint8), size[1::-1]))
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(weights, name, out, *rest, bits="FP,4"):
    keys = tiny_overrides(MODEL__WEIGHTS=weights / f"{name}.pth")
    flags = ["--bits", bits, "--score", "0", "--calib-images", "2", "--out", str(out)]
    main(["predict", "--config-file", str(CONFIGS / name), *flags, *keys, *map(str, rest)])


@pytest.mark.parametrize("name", [C4, FPN])
def test_pictures_and_json_are_written_for_each_width(name, weights, photos, tmp_path):
    predict(weights, name, tmp_path / "out", photos)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a.png", "b.png", "detections_4w4a.json", "detections_FP.json", "index.html"]
    with Image.open(tmp_path / "out" / "b.png") as picture:
        assert picture.width > 2 * 90  # two widths side by side
    page = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r"<figcaption>(\w+)</figcaption>", page) == ["FP", "4w4a"] * 2
    content = json.loads((tmp_path / "out" / "detections_FP.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.png"}]
    assert [each["name"] for each in content["categories"]][:3] == ["zero", "one", "two"]
    assert len(content["annotations"]) > 0
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        limit = (50, 80) if each["image_id"] == 1 else (90, 60)
        assert min(x, y) >= 0
        assert x + width <= limit[0] + 1e-3
        assert y + height <= limit[1] + 1e-3
        if name == FPN:
            assert coco_mask.decode(each["segmentation"]).shape == limit[::-1]


def test_an_image_of_the_test_set_is_shown_with_its_annotations(weights, toy, toy_data_in_place, photos, tmp_path):
    image = sorted((toy / "VOC2007/JPEGImages").iterdir())[-1]
    annotated = find_annotations(config(C4), [image, photos / "b.png"])
    objects = ElementTree.parse(toy / f"VOC2007/Annotations/{image.stem}.xml").findall("object")
    corners = [
        [float(each.find(f"bndbox/{name}").text) for name in ("xmin", "ymin", "xmax", "ymax")] for each in objects
    ]
    assert [each.box for each in annotated[image.resolve()]] == [
        (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1) for x0, y0, x1, y1 in corners
    ]
    assert (photos / "b.png").resolve() not in annotated
    predict(weights, C4, tmp_path / "out", image, bits="FP")
    with Image.open(tmp_path / f"out/{image.stem}.png") as picture, Image.open(image) as original:
        assert picture.width > 2 * original.width  # beside the detections


def test_images_of_no_data_set_need_none(photos, monkeypatch):
    """Not even in a folder that is called as VOC's."""
    folder = photos.rename(photos.with_name("JPEGImages"))
    monkeypatch.chdir(folder.parent)
    assert find_annotations(config(C4, DATASETS__TEST=("nowhere",)), [folder / "b.png"]) == {}


def test_float_predictions_are_the_detectors_outputs(weights, photos, tmp_path):
    predict(weights, C4, tmp_path / "out", photos / "b.png", bits="FP")
    cfg = config(C4, MODEL__WEIGHTS=weights / f"{C4}.pth")
    model = build_detector(cfg)
    model.load_state_dict(torch.load(weights / f"{C4}.pth")["model"])
    with torch.no_grad():
        expected = model.eval()(load_image(cfg, photos / "b.png"))[0]["instances"]
    found = json.loads((tmp_path / "out" / "detections_FP.json").read_text())["annotations"]
    assert [each["score"] for each in found] == pytest.approx(expected.scores.tolist(), rel=1e-5)
    assert [each["category_id"] for each in found] == expected.pred_classes.tolist()


def test_category_ids_are_those_of_the_data_set():
    cfg = config(FPN, DATASETS__TEST=("coco_2017_val",), MODEL__ROI_HEADS__NUM_CLASSES=80)
    assert get_category_ids(cfg)[:13] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14]
    assert get_category_ids(cfg)[-1] == 90
    assert get_category_ids(config(C4)) == list(range(10))


def test_images_are_files_and_the_sorted_files_of_folders(photos):
    assert [path.name for path in find_images([str(photos)])] == ["a.jpg", "b.png"]
    assert [path.name for path in find_images([str(photos / "b.png"), str(photos / "a.jpg")])] == ["b.png", "a.jpg"]


def test_a_file_that_is_not_an_image_is_refused(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no image .*nowhere"):
        find_images([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"there are no images in .*empty"):
        find_images([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="two images are called a"):
        find_images([str(photos), str(photos / "a.jpg")])
    with pytest.raises(UserError, match=r"notes\.txt cannot be read"):
        load_image(config(C4), photos / "notes.txt")


def test_keys_come_before_images():
    rest = ["MODEL.WEIGHTS", "w.pth", "INPUT.MIN_SIZE_TEST", "64", "IMG_1.JPG", "photos"]
    assert _split_keys_and_images(rest) == (rest[:4], rest[4:])
    assert _split_keys_and_images(["photos"]) == ([], ["photos"])
    with pytest.raises(UserError, match="--out must come before the KEY VALUE pairs"):
        _split_keys_and_images(["MODEL.WEIGHTS", "w.pth", "photos", "--out", "elsewhere"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--score", "2"], "--score must be 0 to 1, got 2.0"),
        (["--scope", "head"], "--scope must be backbone or backbone+neck or all"),
        (["--bits", "x"], "cannot read bits 'x'"),
        (["--quantization", "nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(flags, said, weights, photos, tmp_path, capsys):
    keys = tiny_overrides(MODEL__WEIGHTS=weights / f"{C4}.pth")
    named = ["--config-file", str(CONFIGS / C4), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *named, *flags, *keys, str(photos)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
