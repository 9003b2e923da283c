"""Detecting in many images: what is written, images that cannot be read, and how many are processed at a time."""

import json
import os
import threading

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from support.deploy.onnx_files import METADATA, make_outputs, write_colour_detector, write_constant_detector

from ssql_det.core.errors import UserError
from ssql_det.deploy import Detector, folder
from ssql_det.deploy.folder import Summary, count_session_threads, detect_in_images

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def photos(tmp_path):
    """One image of each colour and size, in the order of the classes."""
    paths = [tmp_path / f"{name}.png" for name in COLOURS]
    for side, path, rgb in zip((40, 50, 60), paths, COLOURS.values(), strict=True):
        Image.new("RGB", (side, 30), rgb).save(path)
    return paths


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def read(out):
    return json.loads((out / "detections.json").read_text())


def test_pictures_and_json_are_written(photos, out, tmp_path):
    detector = Detector(write_colour_detector(tmp_path / "a.onnx", has_masks=True))
    assert detect_in_images(detector, photos, out, min_score=0.5) == Summary(images=3, failed=0, objects=3)
    assert sorted(path.name for path in out.iterdir()) == ["blue.png", "detections.json", "green.png", "red.png"]
    content = read(out)
    assert [image["file_name"] for image in content["images"]] == ["red.png", "green.png", "blue.png"]
    assert content["categories"] == [
        {"id": number, "name": name} for number, name in zip((5, 7, 9), METADATA.classes, strict=True)
    ]
    assert [each["category_id"] for each in content["annotations"]] == [5, 7, 9]
    assert [each["bbox"] for each in content["annotations"]] == [[0, 0, 40, 30], [0, 0, 50, 30], [0, 0, 60, 30]]
    assert [each["score"] for each in content["annotations"]] == [1, 1, 1]


def test_the_json_has_what_a_call_gives(photos, out, tmp_path):
    detector = Detector(write_constant_detector(tmp_path / "a.onnx", make_outputs(20, (38, 64), mask_side=28)))
    detect_in_images(detector, photos, out, min_score=0.3)
    content = read(out)
    for image, path in zip(content["images"], photos, strict=True):
        found = detector(Image.open(path), min_score=0.3)
        annotations = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        assert 0 < len(annotations) == len(found)
        boxes = np.float32([each["bbox"] for each in annotations])
        np.testing.assert_allclose(boxes[:, 2:] + boxes[:, :2], found.boxes[:, 2:], rtol=1e-6)
        np.testing.assert_array_equal(np.float32([each["score"] for each in annotations]), found.scores)
        masks = [coco_mask.decode(each["segmentation"]) for each in annotations]
        np.testing.assert_array_equal(masks, found.masks)


def test_nothing_found_is_a_picture_too(photos, out, tmp_path):
    detector = Detector(write_constant_detector(tmp_path / "a.onnx", make_outputs(0)))
    assert detect_in_images(detector, photos[:1], out, min_score=0.5) == Summary(images=1, failed=0, objects=0)
    assert (out / "red.png").is_file()
    assert read(out)["annotations"] == []
    assert len(read(out)["images"]) == 1


def test_outputs_do_not_depend_on_the_number_of_threads(tmp_path):
    paths = [tmp_path / f"{index:02}.png" for index in range(12)]
    for index, path in enumerate(paths):
        Image.new("RGB", (20 + index, 30), (20 * index, 9, 0)).save(path)
    detector = Detector(write_colour_detector(tmp_path / "a.onnx", has_masks=True))
    contents = []
    for threads in (1, 4):
        out = tmp_path / f"out{threads}"
        assert detect_in_images(detector, paths, out, 0, threads).objects == 12
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]


def test_an_image_that_cannot_be_read_is_named_and_the_others_go_on(photos, out, tmp_path, capsys):
    photos[1].write_bytes(photos[1].read_bytes()[:60])
    Image.new("RGB", (9000, 1)).save(photos[2])
    detector = Detector(write_colour_detector(tmp_path / "a.onnx"))
    assert detect_in_images(detector, photos, out, 0.5, threads=2) == Summary(images=1, failed=2, objects=1)
    cut, narrow = capsys.readouterr().err.splitlines()
    assert cut.startswith(f"skipped: {photos[1]} cannot be read: ")
    assert narrow.startswith(f"skipped: {photos[2]}: an image of 9000 x 1 pixels is too narrow")
    assert [image["file_name"] for image in read(out)["images"]] == ["red.png"]
    assert not (out / "green.png").exists()


def test_without_any_image_that_can_be_read_nothing_is_written(photos, out, tmp_path):
    for path in photos:
        path.write_text("no image")
    detector = Detector(write_colour_detector(tmp_path / "a.onnx"))
    with pytest.raises(UserError, match=r"none of the 3 image\(s\) could be processed"):
        detect_in_images(detector, photos, out, 0.5)
    assert not out.exists()


def test_an_output_that_cannot_be_written_ends_it(photos, out, tmp_path):
    out.write_text("a file")
    detector = Detector(write_colour_detector(tmp_path / "a.onnx"))
    with pytest.raises(UserError, match="could not write"):
        detect_in_images(detector, photos, out, 0.5)


def test_as_many_images_as_threads_are_in_memory(photos, out, tmp_path, monkeypatch):
    lock, both = threading.Lock(), threading.Barrier(2)
    now = most = 0

    def count(image, *rest):
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        both.wait(timeout=30)  # for the other thread
        try:
            return process(image, *rest)
        finally:
            with lock:
                now -= 1

    process = folder.process_image
    monkeypatch.setattr(folder, "process_image", count)
    detector = Detector(write_colour_detector(tmp_path / "a.onnx"))
    paths = [*photos, tmp_path / "more.png"]
    Image.new("RGB", (30, 30), (255, 0, 0)).save(paths[-1])
    assert detect_in_images(detector, paths, out, 0.5, threads=2).images == 4
    assert most == 2


def test_an_interrupt_leaves_the_rest_undone(tmp_path, out, monkeypatch):
    paths = [tmp_path / f"{index}.png" for index in range(50)]
    for path in paths:
        Image.new("RGB", (20, 30)).save(path)

    def interrupted(items, *rest):
        yield next(iter(items))
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "track", interrupted)
    detector = Detector(write_colour_detector(tmp_path / "a.onnx"))
    with pytest.raises(KeyboardInterrupt):
        detect_in_images(detector, paths, out, 0, threads=2)
    assert 1 <= len(list(out.iterdir())) < 50
    assert not (out / "detections.json").exists()


@pytest.mark.parametrize(("cores", "images", "threads"), [(8, 1, 8), (8, 3, 6), (8, 8, 1), (8, 20, 1), (1, 1, 1)])
def test_all_threads_together_are_one_per_core(cores, images, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert count_session_threads(images) == threads
