"""``SSQL_DET.EPOCHS``: the schedule that follows the number of training images."""

import json
import logging

import pytest
from support.detect.configs import C4, FPN, config, full_config

from ssql_det.cli.main import make_parser
from ssql_det.cli.train_det import _make_fine_tuning_overrides
from ssql_det.core.errors import UserError
from ssql_det.detect.datasets import make_custom_name
from ssql_det.detect.schedule import LEAST_ITERATIONS, fit_schedule

pytestmark = pytest.mark.usefixtures("toy_data_in_place")
SOLVER = {"SOLVER__MAX_ITER": 1000, "SOLVER__STEPS": (600, 900), "SOLVER__WARMUP_ITERS": 50, "SOLVER__IMS_PER_BATCH": 2}


@pytest.fixture
def make_data(toy, tmp_path):
    """The name of data with some of the toy's training images, with or without masks."""

    def make(count, has_masks=True):
        content = json.loads((toy / "coco/annotations/instances_train2017.json").read_text())
        annotated = {each["image_id"] for each in content["annotations"] if not each["iscrowd"]}
        content["images"] = [each for each in content["images"] if each["id"] in annotated][:count]
        kept = {each["id"] for each in content["images"]}
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
        if not has_masks:
            content["annotations"] = [
                {key: value for key, value in each.items() if key != "segmentation"} for each in content["annotations"]
            ]
        file = tmp_path / f"{count} {has_masks}.json"
        file.write_text(json.dumps(content))
        return make_custom_name(f"{toy}/coco/train2017:{file}")

    return make


def fit(name, epochs, config_name=FPN, **keys):
    return fit_schedule(config(config_name, SSQL_DET__EPOCHS=epochs, DATASETS__TRAIN=(name,), **SOLVER | keys))


def test_iterations_follow_the_images_and_steps_keep_their_shares(make_data, caplog):
    caplog.set_level(logging.INFO, "ssql_det")
    fitted = fit(make_data(7), 200)
    assert fitted.SOLVER.MAX_ITER == 700
    assert fitted.SOLVER.STEPS == (420, 630)
    assert fitted.SOLVER.WARMUP_ITERS == 35
    assert fitted.SSQL_DET.EPOCHS == 0
    assert fit_schedule(fitted) is fitted
    assert caplog.messages[-1:] == [
        "7 training images in batches of 2, 200 times: SOLVER.MAX_ITER is set to 700, SOLVER.STEPS to (420, 630)"
    ]


def test_a_few_images_are_trained_long_enough(make_data):
    assert fit(make_data(3), 1).SOLVER.MAX_ITER == LEAST_ITERATIONS


@pytest.mark.parametrize(
    ("has_masks", "is_on", "expected"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_masks_are_trained_if_the_data_have_some(has_masks, is_on, expected, make_data):
    fitted = fit(make_data(3, has_masks), 1, MODEL__MASK_ON=is_on)
    assert fitted.MODEL.MASK_ON is expected


def test_init_takes_a_tenth_of_the_epochs():
    options = make_parser().parse_args(["train-det", "--config-file", "own_cpu", "--init", "d.pth"])
    overrides = _make_fine_tuning_overrides(options)
    assert overrides[overrides.index("SSQL_DET.EPOCHS") + 1] == "1"  # of 12


def test_without_epochs_nothing_is_read_or_changed():
    cfg = config(C4, DATASETS__TRAIN=("nowhere",))
    assert fit_schedule(cfg) is cfg


def test_the_configs_for_own_data_need_data():
    for name in ("own_cpu.yaml", "own_gpu.yaml"):
        with pytest.raises(
            UserError, match=r"DATASETS\.TRAIN is empty; name your own data by --coco-train IMAGES:FILE"
        ):
            fit_schedule(full_config(name))
