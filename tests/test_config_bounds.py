"""Every key of both configs, of detection and of pretraining, with values of wrong types, NaN, huge and empty ones.

The defaults of detection are those of the engine in use, Detectron2 or minid2.
"""

import math
from fnmatch import fnmatchcase
from operator import attrgetter

import pytest
import yaml

from ssql_det import d2
from ssql_det.core.config import flatten_config
from ssql_det.core.config_values import find_bounds, fit_value
from ssql_det.core.errors import UserError
from ssql_det.d2_bounds import BOUNDS
from ssql_det.detect.config import SSQL_DET_DEFAULTS
from ssql_det.pretrain.config import BOUNDS as PRETRAINING_BOUNDS
from ssql_det.pretrain.config import build_defaults
from ssql_det.pretrain.config import read_config as read_pretraining

VALUES = [
    *(None, True, "", "x", "a\0b", "a\ud800", "x" * 5000, {}, {"a": 1}, {1, 2}, 1j, b"x"),
    *(0, -1, 1, 10**9, 10**40, -(10**40), 16**5000, 0.5, -0.5, 1e40, -1e40, math.nan, math.inf, -math.inf),
    *([], [[]], [None], [0], [-1], [0.5], [1e40], [10**40], [16**5000], [math.nan], [True], ["x"], ["a\0"], [{}]),
    *([1] * 4, [[1]], [[[1]]], [[[[1]]]], [1] * 10_001, ["x", 1]),
    *("9" * 5000, "0x" + "f" * 5000, "1e400", "nan", "[1e40]", "{1: 2}"),
]


CONFIGS = {
    "detection": (d2.get_default_config(SSQL_DET_DEFAULTS), BOUNDS),
    "pretraining": (build_defaults(), PRETRAINING_BOUNDS),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    """The defaults by key, and the bounds."""
    defaults, bounds = CONFIGS[request.param]
    return flatten_config(defaults), bounds


@pytest.mark.parametrize("read", [d2.read_config, read_pretraining])
def test_nothing_behind_a_key_is_refused(read, tmp_path):
    (tmp_path / "a.yaml").write_text("SEED:\n")
    with pytest.raises(UserError, match=r"^SEED must be a whole number, got None in .*a\.yaml; the default is -?\d$"):
        read(tmp_path / "a.yaml")


def test_a_value_becomes_one_of_the_defaults_type_or_is_refused(config):
    defaults, bounds = config
    for key, default in defaults.items():
        accepted = []
        for value in VALUES:
            try:
                accepted.append(fit_value(key, value, default, find_bounds(key, bounds), " in a.yaml"))
            except UserError as refusal:
                assert str(refusal).startswith(f"{key} must be ")  # noqa: PT017
                assert " in a.yaml; the default is " in str(refusal)  # noqa: PT017
                assert len(str(refusal)) < 500  # noqa: PT017
        assert len(accepted) < len(VALUES) / 2
        assert (None in accepted) == (default is None or find_bounds(key, bounds).is_none_valid)
        for value in accepted:
            assert value is None or default is None or type(value) is type(default), key
            assert fit_value(key, value, default, find_bounds(key, bounds)) == value, key
            assert yaml.safe_load(yaml.safe_dump([value])) == [value], key


def test_the_bounds_are_those_of_keys_and_contain_the_defaults(config):
    defaults, bounds = config
    for key, default in defaults.items():
        assert fit_value(key, default, default, find_bounds(key, bounds)) == default
    for pattern in bounds:
        assert [key for key in defaults if fnmatchcase(key, pattern)], f"{pattern} matches no key"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.WEIGHT_DECAY_BIAS", "1e-4", 1e-4),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None", None),
        ("SOLVER.WEIGHT_DECAY_NORM", "None", None),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "inf", math.inf),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.STEPS", "[60000, 80000]", (60000, 80000)),
        ("SOLVER.STEPS", "()", ()),
        ("INPUT.MIN_SIZE_TRAIN", "(0,)", (0,)),
        ("INPUT.MIN_SIZE_TEST", "0", 0),
        ("TEST.DETECTIONS_PER_IMAGE", "-1", -1),
        ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 38.5, 0.2]]", [["bbox", "AP", 38.5, 0.2]]),
        ("DATASETS.TRAIN", "('voc_2007_trainval',)", ("voc_2007_trainval",)),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 40.3], [64]]", [[32, 40.3], [64]]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]", [32, 64]),  # the same ones for every feature map
        ("MODEL.FPN.IN_FEATURES", "('res4', 'res5')", ["res4", "res5"]),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", "[1, 1, 1, 1]", (1, 1, 1, 1)),
        ("MODEL.RPN.CONV_DIMS", "[-1]", [-1]),
        ("SSQL_DET.EVAL_BITS", "['FP', 8]", ["FP", 8]),
    ],
)
def test_what_detectron2_takes_is_taken(key, text, value):
    taken = attrgetter(key)(d2.read_config(None, ["MODEL.DEVICE", "cpu", key, text], SSQL_DET_DEFAULTS))
    assert (taken, type(taken)) == (value, type(value))
