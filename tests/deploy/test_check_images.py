"""On which images an exported detector is compared with the engine's."""

import numpy as np
import pytest
from PIL import Image
from support.deploy.detectors import GraphDetector, make_detector

from ssql_det.core.errors import UserError
from ssql_det.deploy.agreement import compare_detectors
from ssql_det.deploy.check_images import check_test_data, load_check_images, spread
from ssql_det.deploy.metadata import InputRule


def test_items_are_spread():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread([], 5) == []


def save_photos(folder, count):
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (50 + index, 80, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return str(folder)


def test_images_of_a_folder_are_resized_as_the_runtime_does(tmp_path):
    cfg, model = make_detector("FPN")
    batches = load_check_images(cfg, 3, save_photos(tmp_path / "photos", 7))
    assert [batch[0]["file_name"][-5:] for batch in batches] == ["0.png", "2.png", "4.png"]
    assert [batch[0]["height"] for batch in batches] == [50, 52, 54]
    detector = GraphDetector(cfg, model)
    assert compare_detectors(detector, model, batches).is_close
    detector.rule = InputRule("RGB", 65, 2000)
    found = compare_detectors(detector, model, batches)
    assert found.resized_differently == 3
    assert not found.is_close


def test_an_image_that_cannot_be_read_is_named_before_anything_is_written(tmp_path):
    cfg, _ = make_detector("C4")
    folder = save_photos(tmp_path / "photos", 2)
    (tmp_path / "photos/2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"photos/2\.png cannot be read"):
        load_check_images(cfg, 9, folder)
    with pytest.raises(UserError, match=r"there is no image .*nowhere"):
        load_check_images(cfg, 9, str(tmp_path / "nowhere"))


def test_missing_test_data_say_what_to_do_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    what_else = "; to compare on other images, use --check-folder FOLDER; to write the file without a comparison, "
    cfg, _ = make_detector("C4")
    with pytest.raises(UserError, match=f"there are no toy data in .*{what_else}--check-images 0"):
        load_check_images(cfg, 9)
    assert load_check_images(cfg, 0) == []
    cfg, _ = make_detector("C4", **{"DATASETS.TEST": ()})
    with pytest.raises(UserError, match=f"DATASETS.TEST is empty; name a data set{what_else}--check-images 0"):
        load_check_images(cfg, 9)
    with pytest.raises(UserError, match="TEST is empty"):
        check_test_data(cfg)
