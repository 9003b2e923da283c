"""kNN evaluation during pretraining: skipped for training images without labels, unless MONITOR.DATA names them."""

import logging
from dataclasses import replace

import pytest
from PIL import Image
from support.pretrain.runs import config

from ssql_det.backbones import build_backbone
from ssql_det.core.errors import UserError
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.monitor import build_monitor

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
FOLDERS = {  # of images without labels, or without a val split
    "plain": ("",),
    "splits without classes": ("train", "val"),
    "classes without splits": ("cat", "dog"),
    "classes of train alone": ("train/cat", "train/dog"),
}


def save_images(folder, subfolders=("",), count=4):
    for subfolder in subfolders:
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (20, 20), (60 * number, 80, 90)).save(folder / subfolder / f"{number}.png")
    return folder


@pytest.fixture(params=FOLDERS)
def unlabelled(request, tmp_path):
    return save_images(tmp_path / "photos", FOLDERS[request.param])


def build(photos, toy, tmp_path, **keys):
    cfg = config(toy, tmp_path, DATA__TRAIN=photos, MONITOR__PERIOD=1, **keys)
    return build_monitor(cfg.monitor, cfg.data.augmentation, build_backbone("narrow_resnet").module)


def get_warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_labels_it_is_skipped_with_one_line(unlabelled, toy, tmp_path, caplog):
    assert build(unlabelled, toy, tmp_path) is None
    assert get_warnings(caplog) == [
        f"kNN evaluation is skipped: {unlabelled} has no 'train' and 'val' splits with class folders; "
        "set MONITOR.DATA to a folder that has both, or MONITOR.PERIOD to 0 to disable kNN evaluation"
    ]


def test_explicit_data_without_labels_are_refused(unlabelled, toy, tmp_path, caplog):
    with pytest.raises(UserError, match=r"^MONITOR\.DATA: .*photos has no ('val' split|labels)"):
        build(unlabelled, toy, tmp_path, MONITOR__DATA=unlabelled)
    assert not get_warnings(caplog)


def test_explicit_data_are_used(unlabelled, toy, tmp_path, caplog):
    monitor = build(unlabelled, toy, tmp_path, MONITOR__DATA=toy / "crops")
    assert 0 <= monitor.evaluate()["knn/FP"] <= 100
    assert not get_warnings(caplog)


def test_other_faults_of_the_data_are_errors(toy, tmp_path):
    photos = save_images(tmp_path / "photos", ("train/cat", "train/dog", "val/cat", "val/hen"))
    with pytest.raises(UserError, match="has the class hen"):
        build(photos, toy, tmp_path)


def test_pretraining_on_a_plain_folder_runs_to_its_end(toy, tmp_path, caplog):
    photos = save_images(tmp_path / "photos", count=8)
    cfg = config(toy, tmp_path / "run", DATA__TRAIN=photos, OPTIM__BATCH=4, OPTIM__EPOCHS=2, MONITOR__PERIOD=1)
    assert pretrain(cfg).exists()
    assert len([line for line in get_warnings(caplog) if line.startswith("kNN evaluation is skipped")]) == 1
    assert "knn" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    resumed = pretrain(replace(cfg, monitor=None), resume=True)
    assert resumed == tmp_path / "run" / "checkpoint.pth"
