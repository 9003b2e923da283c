"""Micro-batches: a batch that is trained in parts has the gradient of the whole batch."""

import pytest
from support.detect.configs import C4, config
from support.detect.processes import AT_4W4A, build_in_float64
from support.detect.training_runs import first_gradients, largest_difference, sampling_first_regions

from ssql_det.core.errors import UserError
from ssql_det.d2 import get_detection_dataset_dicts
from ssql_det.detect.detector import build_detector
from ssql_det.detect.train import train


def gradients(tmp_path, micro_batches, build=build_detector, **keys):
    """With as many regions of each image and no norm that mixes images."""
    frozen = {"MODEL__RESNETS__NORM": "FrozenBN", "SSQL_DET__EXTRA_NORM": "", "SOLVER__IMS_PER_BATCH": 4}
    cfg = config(C4, tmp_path / f"{micro_batches}", SSQL_DET__MICRO_BATCHES=micro_batches, **frozen, **keys)
    with sampling_first_regions():
        return first_gradients(cfg, build)


@pytest.fixture
def one_size(monkeypatch):
    """All records are one image: nothing of a batch is padding."""
    records = get_detection_dataset_dicts(("toy_voc_2007_trainval",))
    wide = [each for each in records if each["width"] > each["height"]]
    monkeypatch.setattr("ssql_det.detect.train_loader.get_detection_dataset_dicts", lambda *args, **kwargs: wide[:1])


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(parts, one_size, tmp_path):
    keys = {"INPUT__MIN_SIZE_TRAIN": (64,), "INPUT__RANDOM_FLIP": "none"}
    assert largest_difference(gradients(tmp_path, parts, **keys), gradients(tmp_path, 1, **keys)) <= 1e-3


def test_quantized_micro_batches_share_the_ranges_of_the_whole_batch(one_size, tmp_path):
    keys = {"INPUT__MIN_SIZE_TRAIN": (64,), "INPUT__RANDOM_FLIP": "horizontal"}  # so that images differ
    parts, whole = (gradients(tmp_path, count, build_in_float64, **keys, **AT_4W4A) for count in (4, 1))
    assert largest_difference(parts, whole) <= 1e-9


def test_each_micro_batch_has_the_same_weight_whatever_its_number_of_regions(tmp_path):
    """Detectron2 divides by what one forward has sampled: the mean of two parts is not quite the mean over all."""
    keys = {"INPUT__MIN_SIZE_TRAIN": (64,), "INPUT__RANDOM_FLIP": "none"}
    sampled = {"MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 512}  # more than there are: all are taken
    whole, parts = (gradients(tmp_path, count, **keys, **sampled) for count in (1, 2))
    assert 1e-3 < largest_difference(parts, whole) <= 0.5


def test_micro_batches_must_divide_the_batch(tmp_path):
    with pytest.raises(UserError, match=r"SSQL_DET\.MICRO_BATCHES must divide SOLVER\.IMS_PER_BATCH \(4\), got 3"):
        train(config(C4, tmp_path / "run", SSQL_DET__MICRO_BATCHES=3, SOLVER__IMS_PER_BATCH=4), C4)
    assert not (tmp_path / "run").exists()
