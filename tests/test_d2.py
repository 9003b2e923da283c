"""The engine facade: which engine is chosen, what is an error, and that its names are the engine's objects.

Each choice is made in its own process, with fake packages called detectron2.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.local_group import write_local_ranks

from ssql_det import d2
from ssql_det.core.errors import UserError
from ssql_det.core.launch import launch
from ssql_det.toydata.digits import CLASSES

pytestmark = pytest.mark.slow

USE = """
from ssql_det.core.errors import reporting_errors
with reporting_errors():
    from ssql_det import d2
    d2.set_up_logging()
    print(d2.engine_name(), d2.Instances.__module__)
"""
NAME = "from ssql_det import d2; print(d2.engine_name())"  # does not import the engine


def run(program, *folders, **variables):
    """A program with these folders before all others on its path, without whichever Detectron2 is installed."""
    hidden = [
        each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if not (Path(each) / "detectron2").exists()
    ]
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), *hidden]), **variables}
    return subprocess.run([sys.executable, "-c", program], env=place, capture_output=True, text=True, check=False)


def refusal(*args, **variables):
    done = run(USE, *args, **variables)
    assert done.returncode == 2, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return sentence


def package(folder, **modules):
    """A package called detectron2 of these modules (dots as __)."""
    for name, text in {"": "", **modules}.items():
        file = folder / "detectron2" / Path(*name.split("__")) / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.fixture(scope="module")
def no_detectron2():
    if (
        "detectron2"
        in run("import importlib.util as u; s = u.find_spec('detectron2'); print(s and 'detectron2')").stdout
    ):
        pytest.skip("a Detectron2 is installed for good")


@pytest.fixture(scope="module")
def lines_after_own_registration():
    """What a program prints that registers a data set of its own under a name of the toy data."""
    own = """
from ssql_det import d2
catalog = __import__(d2._ROOTS[d2.engine_name()] + ".data", fromlist=["DatasetCatalog"]).DatasetCatalog
catalog.register("toy_coco_2017_val", lambda: ["mine"])
print(d2.DatasetCatalog.get("toy_coco_2017_val"))
"""
    return run(own + USE).stdout.splitlines()


def test_without_detectron2_minid2_is_used(no_detectron2, lines_after_own_registration):
    assert lines_after_own_registration[1].split() == ["minid2", "ssql_det.minid2.structures.instances"]


def test_a_users_registration_stays(lines_after_own_registration):
    assert lines_after_own_registration[0] == "['mine']"


def test_an_installed_detectron2_is_used(tmp_path):
    assert run(NAME, package(tmp_path)).stdout.split() == ["detectron2"]
    assert run(NAME, package(tmp_path), SSQL_DET_ENGINE="minid2").stdout.split() == ["minid2"]


def test_a_forced_engine_that_is_missing_is_an_error(no_detectron2):
    sentence = refusal(SSQL_DET_ENGINE="detectron2")
    assert "SSQL_DET_ENGINE=detectron2, but detectron2 is not installed" in sentence
    assert "docs/engine.md" in sentence


def test_an_unknown_engine_is_an_error(no_detectron2):
    assert "must be detectron2 or minid2, got 'mmdet'" in refusal(SSQL_DET_ENGINE="mmdet")


def test_a_broken_detectron2_is_an_error_and_no_silent_change(tmp_path):
    broken = package(tmp_path, checkpoint="import no_such_library")
    sentence = refusal(broken)
    assert str(broken) in sentence
    assert "ModuleNotFoundError: No module named 'no_such_library'" in sentence
    assert "SSQL_DET_ENGINE=minid2" in sentence


def test_a_crash_in_detectron2_is_an_error_too(tmp_path):
    assert "OSError: libcudart" in refusal(package(tmp_path, checkpoint="raise OSError('libcudart')"))


def test_a_folder_of_that_name_is_no_engine(tmp_path, no_detectron2):
    (tmp_path / "detectron2/configs").mkdir(parents=True)
    assert run(NAME, tmp_path).stdout.split() == ["minid2"]
    assert "is a folder without a package" in refusal(tmp_path, SSQL_DET_ENGINE="detectron2")


def test_a_detectron2_without_a_needed_name_is_an_error(tmp_path):
    modules = {
        name.replace(".", "__"): "\n".join(f"{each} = None" for each in names if each != "ROI_HEADS_REGISTRY")
        for name, names in d2._NAMES.items()
    }
    sentence = refusal(package(tmp_path, **modules, utils__comm=""))
    assert "is too old: it lacks modeling.ROI_HEADS_REGISTRY;" in sentence


def test_importing_the_facade_imports_no_engine_and_no_torch():
    assert run("import sys, ssql_det.d2; print('torch' in sys.modules)").stdout.split() == ["False"]


def test_names_are_the_engines_objects():
    root = d2._ROOTS[d2.engine_name()]
    for sub_package, names in d2._NAMES.items():
        __import__(f"{root}.{sub_package}")
        for name in names:
            assert getattr(d2, name) is getattr(sys.modules[f"{root}.{sub_package}"], name)
    assert set(d2._load_names()) <= set(dir(d2))
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        d2.Trainer  # noqa: B018


def test_every_name_has_a_type():
    tree = ast.parse(Path(d2.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = set()
    for node in block.body:
        names = [alias.name for alias in node.names]
        names = importlib.import_module(node.module).__all__ if names == ["*"] else names
        typed |= {(node.module.removeprefix("ssql_det.minid2."), name) for name in names}
    assert typed >= {(sub_package, name) for sub_package, names in d2._NAMES.items() for name in names}


def test_all_names_that_the_package_imports_are_listed():
    trees = [ast.parse(path.read_text("utf-8")) for path in Path(d2.__file__).parent.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {alias.name for node in nodes if node.module == "ssql_det.d2" for alias in node.names}
    assert len(imported) > 20
    assert imported <= set(d2._load_names()) | set(vars(d2))


def test_toy_data_are_registered_once():
    assert {"toy_voc_2007_trainval", "toy_voc_2007_test"} < set(d2.DatasetCatalog.list())
    assert list(d2.MetadataCatalog.get("toy_coco_2017_val").thing_classes) == list(CLASSES)
    assert d2.MetadataCatalog.get("toy_coco_2017_train").evaluator_type == "coco"
    assert d2.MetadataCatalog.get("toy_voc_2007_test").evaluator_type == "pascal_voc"
    assert len(d2.MetadataCatalog.get("voc_2007_test").thing_classes) == 20
    d2.register_toy_data()  # Detectron2 itself would refuse a second time


def test_a_config_has_the_extra_node_is_frozen_and_has_an_existing_device(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "base.yaml").write_text("MODEL:\n  MASK_ON: True\nSSQL_DET:\n  EVAL_PERIOD: 5\nVERSION: 2\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSOLVER:\n  BASE_LR: 0.5\n")
    own = {"EVAL_PERIOD": 0, "EVAL_BITS": ["8w8a"]}
    with caplog.at_level("WARNING"):
        cfg = d2.read_config(tmp_path / "top.yaml", ["SEED", "7"], own)
    assert (cfg.MODEL.MASK_ON, cfg.SOLVER.BASE_LR, cfg.SEED) == (True, 0.5, 7)
    assert cfg.SSQL_DET == {"EVAL_PERIOD": 5, "EVAL_BITS": ["8w8a"]}
    assert cfg.MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE cuda is replaced by cpu" in caplog.text
    assert cfg.is_frozen()
    assert isinstance(cfg, d2.CfgNode)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert d2.read_config().MODEL.DEVICE == "cuda"


@pytest.mark.parametrize("device", ["tpu", "cuda:99", ""])
def test_a_missing_device_is_refused(device):
    with pytest.raises(UserError, match=rf"MODEL\.DEVICE '{device}' is not available \(.*\); set it to cpu or cuda"):
        d2.read_config(overrides=["MODEL.DEVICE", device])


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("SOLVER:\n  BASE_RL: 1\n", [], "did you mean 'SOLVER.BASE_LR'"),
        ("", ["SSQL_DET.EVAL_BIT", "8w8a"], "SSQL_DET.EVAL_BIT"),
        ("SEED: !!python/object/apply:os.getpid []\n", [], "config.yaml"),
        (
            "",
            ["SSQL.EVAL_BITS", "['4w4a']"],
            "SSQL.EVAL_BITS in the command line is now SSQL_DET.EVAL_BITS; write that",
        ),
        (None, [], "config.yaml"),
    ],
)
def test_an_invalid_config_is_one_sentence(tmp_path, text, overrides, sentence):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        d2.read_config(tmp_path / "config.yaml", overrides, {"EVAL_BITS": ["8w8a"]})


def test_the_former_node_name_is_read_in_saved_configs_and_refused_elsewhere(tmp_path):
    own = {"EVAL_BITS": ["8w8a"], "SCOPE": "all"}
    for name in ("config.yaml", "mine.yaml"):
        (tmp_path / name).write_text("SSQL:\n  EVAL_BITS: [4w4a]\n")
    assert d2.read_config(tmp_path / "config.yaml", (), own).SSQL_DET == {"EVAL_BITS": ["4w4a"], "SCOPE": "all"}
    with pytest.raises(UserError, match=r"SSQL\.EVAL_BITS in .*mine\.yaml is now SSQL_DET\.EVAL_BITS; write that"):
        d2.read_config(tmp_path / "mine.yaml", (), own)


def test_log_lines_of_both_roots_appear_once():
    speak = """
import logging
from ssql_det import d2
d2.set_up_logging()
d2.set_up_logging()
for name in ("ssql_det.detect", "detectron2.data.build", "fvcore.common.checkpoint"):
    logging.getLogger(name).warning("said by %s", name.split(".")[0])
"""
    said = run(speak).stderr
    assert [said.count(f"said by {name}") for name in ("ssql_det", "detectron2", "fvcore")] == [1, 1, 1]


def test_ranks_of_one_machine_form_a_local_group(tmp_path):
    launch(write_local_ranks, tmp_path, processes=2)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["0 of 2", "1 of 2"]
