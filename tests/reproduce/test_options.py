"""The options of a plan: tables, methods, seeds, bits, checkpoints."""

from collections import Counter
from pathlib import Path

import pytest
from support.reproduce.plans import ROOT, build_plan

from ssql_det.core.errors import UserError
from ssql_det.reproduce.presets import get_preset


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def list_swept(plan):
    return {step.name.removeprefix("sweep-") for step in plan.steps if step.kind == "sweep"}


def count_kinds(plan):
    return Counter(step.kind for step in plan.steps)


def test_steps_of_whole_presets():
    mini, small, paper = (build_plan(name) for name in ("mini", "small", "paper"))
    assert count_kinds(mini) == {
        "data": 1,
        "pretrain": 2,
        "convert": 2,
        "train": 6,
        "sweep": 6,
        "predict": 6,
        "analyze": 1,
    }
    assert count_kinds(small) == {
        "data": 1,
        "pretrain": 6,
        "convert": 6,
        "train": 18,
        "sweep": 18,
        "predict": 6,
        "analyze": 1,
    }
    assert count_kinds(paper) == {"pretrain": 8, "convert": 8, "train": 45, "sweep": 45, "predict": 9}
    first = f"{mini.steps[0].command} "
    assert first == "ssql-det make-toy-data runs/x/data --difficulty 0.0 --size 128 128 "


def test_one_table():
    plan = build_plan("mini", tables=(7,))
    assert list_swept(plan) == {"fpn-random-init-0", "fpn-simsiam-0", "fpn-ssql-0"}
    assert count_kinds(plan)["pretrain"] == 2
    assert {reason.split(" of ")[1][:7] for reason in plan.left_out} == {"Table 7"}
    assert list_swept(build_plan("mini", tables=(6,))) | list_swept(plan) == list_swept(build_plan("mini"))


@pytest.mark.parametrize(
    ("methods", "runs"),
    [
        (("ssql",), {"ssql"}),
        (("SimSiam + SSQL",), {"ssql"}),
        (("Scratch", "sim siam"), {"random-init", "simsiam"}),
        (("random init.",), {"random-init"}),
        (("SSQL (ours)", "ssql"), {"ssql"}),
    ],
)
@pytest.mark.parametrize("tables", [(6,), (7,), (6, 7)], ids=str)
def test_methods_in_any_spelling(methods, runs, tables):
    """Also random weights, which the published Table 7 does not have."""
    plan = build_plan("mini", methods=methods, tables=tables)
    assert list_swept(plan) == {f"{ {6: 'c4', 7: 'fpn'}[table] }-{name}-0" for name in runs for table in tables}
    assert count_kinds(plan)["pretrain"] == len(runs - {"random-init"})
    assert not plan.left_out


def test_methods_without_a_config_are_listed():
    plan = build_plan("mini", methods=("ssql", "byol"))
    assert list_swept(plan) == {"c4-ssql-0", "fpn-ssql-0"}
    assert [reason.split(":")[0] for reason in plan.left_out] == ["BYOL of Table 6", "BYOL of Table 7"]
    with pytest.raises(UserError, match=r"no config pretrains BYOL, IN supervised; add --checkpoint 'BYOL'=FILE"):
        build_plan("mini", methods=("byol", "supervised"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("SimSam",)}, r"unknown method 'SimSam'; did you mean 'SimSiam'\? \(known: "),
        ({"methods": ("",)}, r"unknown method ''"),
        (
            {"methods": ("SSQL-200ep",), "tables": (7,)},
            r"unknown method 'SSQL-200ep'.*known: IN supervised, SimSiam, BYOL",
        ),
        ({"checkpoints": {"BYL": "a.pth"}}, r"unknown method 'BYL'; did you mean 'BYOL'\?"),
        (
            {"checkpoints": {"random": "a.pth"}},
            "--checkpoint random=a.pth: 'random init.' has random weights",
        ),
        (
            {"checkpoints": {"SSQL": "a.pth", "ssql (ours)": "b.pth"}},
            "two files for ssql .ours., a.pth and b.pth; leave one out",
        ),
        ({"checkpoints": {"BYOL": "a.pth"}, "methods": ("SSQL",)}, "a file for 'BYOL', which --methods leaves out"),
    ],
)
def test_unknown_methods_are_refused_with_a_hint(options, message):
    with pytest.raises(UserError, match=message):
        build_plan("mini", **options)


def test_seeds():
    plan = build_plan("mini", seeds=3, tables=(6,), methods=("ssql", "random"))
    assert list_swept(plan) == {f"c4-{name}-{seed}" for name in ("ssql", "random-init") for seed in range(3)}
    assert [step.name for step in plan.steps if step.kind == "pretrain"] == [
        f"pretrain-ssql-{seed}" for seed in (0, 1, 2)
    ]
    assert {step.name for step in plan.steps if step.kind == "predict"} == {
        "predict-c4-ssql-0",
        "predict-c4-random-init-0",
    }
    paper = build_plan("paper", seeds=2, tables=(6,), methods=("ssql",))
    assert count_kinds(paper) == {"pretrain": 1, "convert": 1, "train": 2, "sweep": 2, "predict": 1}
    backbones = {step.inputs[-1] for step in paper.steps if step.kind == "train"}
    assert backbones == {Path("runs/x/backbones/imagenet_r18_ssql-0/backbone.pkl")}


def test_bits():
    plan = build_plan("mini", bits="FP,3w4a", tables=(6,))
    for step in plan.steps:
        if step.kind in ("sweep", "predict"):
            assert step.arguments[step.arguments.index("--bits") + 1] == "FP,3w4a"
    assert plan.preset.bits == "FP,3w4a"
    assert get_preset("mini").bits == "FP,8,6,5,4,2w4a"


def test_a_checkpoint_replaces_a_pretraining(tmp_path):
    plan = build_plan("mini", checkpoints={"ssql": str(tmp_path / "ours.pth")})
    assert [step.name for step in plan.steps if step.kind == "pretrain"] == ["pretrain-simsiam-0"]
    (convert,) = [step for step in plan.steps if step.name == "convert-ssql"]
    assert convert.inputs == (tmp_path / "ours.pth",)
    trained = [step for step in plan.steps if step.name in ("train-c4-ssql-0", "train-fpn-ssql-0")]
    assert all(set(convert.outputs) <= set(step.inputs) for step in trained)
    assert len(trained) == 2
    assert list_swept(plan) == list_swept(build_plan("mini"))


def test_a_checkpoint_adds_a_method_without_a_config():
    plan = build_plan("mini", checkpoints={"BYOL": "~/byol.pth"})
    assert list_swept(plan) - list_swept(build_plan("mini")) == {"c4-byol-0", "fpn-byol-0"}
    assert not [reason for reason in plan.left_out if reason.startswith("BYOL")]
    (convert,) = [step for step in plan.steps if step.name == "convert-byol"]
    assert convert.inputs == (Path("~/byol.pth").expanduser(),)


def test_a_checkpoint_in_the_paper_preset_needs_one_table():
    with pytest.raises(UserError, match="the tables need different architectures; choose one"):
        build_plan("paper", checkpoints={"BYOL": "byol.pth"})


def test_several_gpus_share_a_pretraining():
    one_gpu, eight_gpus = (
        build_plan("paper", num_gpus=gpus, tables=(6,), methods=("ssql",)).steps[0] for gpus in (1, 8)
    )
    assert "--num-gpus" not in one_gpu.arguments
    assert eight_gpus.arguments[eight_gpus.arguments.index("--num-gpus") + 1] == "8"
    assert eight_gpus.minutes < one_gpu.minutes / 7


def test_steps_are_ordered_by_kind_and_then_by_length():
    steps = build_plan("small", tables=(8, 6, 1)).steps
    order = ["data", "pretrain", "convert", "train", "sweep", "predict", "probe", "analyze"]
    assert [(order.index(step.kind), -step.minutes) for step in steps] == sorted(
        (order.index(step.kind), -step.minutes) for step in steps
    )


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match=r"unknown preset 'smal'; did you mean 'small'\?"):
        get_preset("smal")
