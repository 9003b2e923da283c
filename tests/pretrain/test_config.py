"""The pretraining config: each method has its node, and runs with the keys of earlier versions can be resumed."""

import inspect
import shutil

import pytest
import yaml
from support.pretrain.runs import MINI, config, content, keys, same
from support.refusals import refused

from ssql_det.core.errors import UserError
from ssql_det.pretrain.config import build_network, default_values, read_config
from ssql_det.pretrain.loop import pretrain
from ssql_det.ssl import METHODS, SSQL, SimSiam

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


@pytest.mark.parametrize("name", [*METHODS, "ssql"])
def test_a_node_has_the_constructors_arguments(name):
    kind = SSQL if name == "ssql" else METHODS.get(name)
    taken = {key: each for key, each in inspect.signature(kind).parameters.items() if each.kind is each.KEYWORD_ONLY}
    found = {key: value for key, value in default_values().items() if key.startswith(f"{name.upper()}.")}
    assert {f"{name.upper()}.{key.upper()}": each.default for key, each in taken.items()}.items() <= found.items()
    assert name == "ssql" or len(found) == len(taken) == len(inspect.signature(kind).parameters) - 1


@pytest.fixture
def wider():
    """A method that is registered from outside the package during a test."""

    @METHODS.register("wider")
    class Wider(SimSiam):
        title = "Wider"

        def __init__(self, backbone, *, dim: int = 24, factor: float = 2.0) -> None:
            super().__init__(backbone, dim=dim, hidden=int(factor * dim))

    yield Wider
    del METHODS._objects["wider"]


def test_a_registered_method_adds_its_node(wider):
    cfg = read_config(MINI, ["METHOD", "wider", "WIDER.FACTOR", "0.5"])
    network, _ = build_network(cfg)
    assert (type(network.method), network.method.predictor[0].out_features) == (wider, 12)
    assert not [key for key in cfg.values if key.startswith(("MOCO.", "SIMSIAM."))]
    with pytest.raises(UserError, match=r"DIM in the command line is now one of BYOL\.DIM, .*, WIDER\.DIM; write"):
        read_config(MINI, ["METHOD", "wider", "DIM", "8"])


def test_runs_of_other_methods_do_not_need_it(wider, toy, tmp_path):
    """A run of another method resumes although the user's module is not imported again."""
    pretrain(config(toy, tmp_path, OPTIM__EPOCHS=1))
    del METHODS._objects["wider"]
    try:
        pretrain(config(toy, tmp_path, OPTIM__EPOCHS=1), resume=True)
        assert read_config(tmp_path / "config.yaml").method is SimSiam
    finally:
        METHODS._objects["wider"] = wider


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown method 'simsam'; did you mean 'simsiam'\? \(known: byol, moco,"):
        read_config(MINI, ["METHOD", "simsam"])


def test_a_former_top_level_key_is_refused_with_its_new_name(toy, tmp_path, capsys):
    message = "config key QUEUE in the command line is now MOCO.QUEUE; write that"
    assert message in refused(
        capsys, "pretrain", "--config-file", str(MINI), *keys(toy, tmp_path / "out"), "QUEUE", "64"
    )
    (tmp_path / "old.yaml").write_text(f"_BASE_: {MINI}\nLAST_NORM: True\n")
    with pytest.raises(UserError, match=r"LAST_NORM in .*old\.yaml is now BYOL\.LAST_NORM"):
        read_config(tmp_path / "old.yaml")


def use_former_keys(folder):
    """Rewrite a saved config with the former top-level keys."""
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    flat = {"DIM": 2048, "HIDDEN": 512, "LAST_NORM": False, "MOMENTUM": 0.99, "QUEUE": 4096, "TEMPERATURE": 0.2}
    own = saved.pop(saved["METHOD"].upper())
    (folder / "config.yaml").write_text(yaml.safe_dump({**saved, **flat, "CROSS": False, **own}))


def test_a_run_with_former_top_level_keys_is_resumed(toy, stop_after, tmp_path):
    run = {"METHOD": "moco", "OPTIM__EPOCHS": 2, "MOCO__QUEUE": 40}
    pretrain(config(toy, tmp_path / "whole", **run))
    stop_after(config(toy, tmp_path / "stopped", **run), 2)
    use_former_keys(tmp_path / "stopped")
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")
    with pytest.raises(UserError, match=r"has MOCO\.DIM 16 \(now 17\); resume with its config"):
        pretrain(config(toy, tmp_path / "stopped", **run, MOCO__DIM=17), resume=True)
    pretrain(config(toy, tmp_path / "stopped", **run), resume=True)
    pretrain(read_config(tmp_path / "alone" / "config.yaml", ["OUTPUT_DIR", str(tmp_path / "alone")]), resume=True)
    for name in ("stopped", "alone"):
        assert same(content(tmp_path / name), content(tmp_path / "whole"))
    saved = yaml.safe_load((tmp_path / "alone" / "config.yaml").read_text())
    assert "MOCO" in saved
    assert "DIM" not in saved
