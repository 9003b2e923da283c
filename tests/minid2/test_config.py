"""The config tree against Detectron2's recorded one, and ``configurable`` as its classes use it."""

from pathlib import Path

import pytest
import yaml

from ssql_det.minid2.config import CfgNode, configurable, get_cfg, refuse_unsupported

DUMPED = Path(__file__).parent.parent / "goldens/default_config.yaml"  # Detectron2's get_cfg().dump()


def leaves(tree):
    return sum(leaves(value) if isinstance(value, dict) else 1 for value in tree.values())


def test_every_default_is_detectron2s():
    theirs = yaml.safe_load(DUMPED.read_text())
    assert yaml.safe_load(get_cfg().dump()) == theirs
    assert leaves(theirs) == 192


def test_a_dumped_config_loads(tmp_path):
    dumped = yaml.safe_load(DUMPED.read_text())
    dumped["SOLVER"]["STEPS"] = [10, 20]
    dumped["MODEL"]["RESNETS"]["DEPTH"] = 18
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dumped))
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert cfg.SOLVER.STEPS == (10, 20)
    assert cfg.MODEL.RESNETS.DEPTH == 18
    refuse_unsupported(cfg)


def test_bases_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL:\n  MASK_ON: True\n  WEIGHTS: a.pkl\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nMODEL:\n  WEIGHTS: b.pkl\nVERSION: 2\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "top.yaml"))
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.5, "DATASETS.TRAIN", "('voc',)"])
    assert (cfg.MODEL.MASK_ON, cfg.MODEL.WEIGHTS, cfg.SOLVER.BASE_LR) == (True, "b.pkl", 0.5)
    assert cfg.DATASETS.TRAIN == ("voc",)
    assert get_cfg().MODEL.WEIGHTS == ""  # the defaults themselves stay as they are


def test_what_is_not_understood_is_refused(tmp_path):
    cfg = get_cfg()
    (tmp_path / "typo.yaml").write_text("MODEL:\n  NOSE: 1\n")
    with pytest.raises(KeyError, match=r"Non-existent config key: MODEL\.NOSE"):
        cfg.merge_from_file(str(tmp_path / "typo.yaml"))
    (tmp_path / "old.yaml").write_text("VERSION: 1\n")
    with pytest.raises(AssertionError, match="version 1"):
        cfg.merge_from_file(str(tmp_path / "old.yaml"))
    with pytest.raises(AssertionError, match="does not exist"):
        cfg.merge_from_file(str(tmp_path / "absent.yaml"))


def test_yaml_that_would_run_code_does_not(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "evil.yaml").write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(yaml.constructor.ConstructorError):
        get_cfg().merge_from_file(str(tmp_path / "evil.yaml"))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.RETINANET.NUM_CONVS", 3),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
        ("TEST.AUG.ENABLED", True),
        ("DATASETS.PROPOSAL_FILES_TRAIN", ("proposals.pkl",)),
    ],
)
def test_the_unsupported_is_refused_by_name(key, value):
    cfg = get_cfg()
    refuse_unsupported(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(NotImplementedError, match=f"does not support {key}: leave the default"):
        refuse_unsupported(cfg)


class Head:
    @configurable
    def __init__(self, width, depth=2, *, name="head"):
        self.values = (width, depth, name)

    @classmethod
    def from_config(cls, cfg, name="from config"):
        return {"width": cfg.WIDTH, "depth": 5, "name": name}


class Forwarding(Head):
    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        return {"width": cfg.WIDTH + len(args), **kwargs}


@configurable(from_config=lambda cfg: {"width": cfg.WIDTH})
def make(width, depth=1):
    return width, depth


CONFIG = CfgNode({"WIDTH": 64})


@pytest.mark.parametrize(
    ("made", "values"),
    [
        (lambda: Head(3), (3, 2, "head")),
        (lambda: Head(width=3, depth=4), (3, 4, "head")),
        (lambda: Head(CONFIG), (64, 5, "from config")),
        (lambda: Head(cfg=CONFIG), (64, 5, "from config")),
        (lambda: Head(CONFIG, depth=7), (64, 7, "from config")),
        (lambda: Head(CONFIG, name="mine"), (64, 5, "mine")),
        (lambda: Head(CONFIG, "second"), (64, 5, "second")),
        (lambda: Forwarding(CONFIG, 1, 2, depth=9), (66, 9, "head")),
    ],
)
def test_a_class_takes_arguments_or_a_config(made, values):
    assert made().values == values


def test_a_function_takes_arguments_or_a_config():
    assert make(3) == (3, 1)
    assert make(CONFIG) == (64, 1)
    assert make(CONFIG, depth=4) == (64, 4)
    assert make.from_config(CONFIG) == {"width": 64}


def test_configurable_says_how_it_is_used():
    class Without:
        @configurable
        def __init__(self, width): ...

    class Plain:
        @configurable
        def __init__(self, width): ...

        def from_config(self, cfg): ...

    class Misnamed(Head):
        @classmethod
        def from_config(cls, config): ...

    with pytest.raises(AttributeError, match="must have a 'from_config'"):
        Without(CONFIG)
    with pytest.raises(TypeError, match="must have a 'from_config'"):
        Plain(CONFIG)
    with pytest.raises(TypeError, match="must take 'cfg' as the first argument"):
        Misnamed(CONFIG)
    with pytest.raises(AssertionError, match="it decorates __init__"):
        configurable(make)
