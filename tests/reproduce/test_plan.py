"""Plans: each command is valid for its parser and config, and its inputs exist when it starts."""

import itertools
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reproduce.plans import ROOT, build_plan

from ssql_det import d2
from ssql_det.cli.main import make_parser
from ssql_det.cli.predict import _split_keys_and_images
from ssql_det.convert import FORMATS
from ssql_det.core.config import read_config_file as uncached
from ssql_det.core.errors import UserError
from ssql_det.detect import SSQL_DET_DEFAULTS
from ssql_det.detect.sweep import QUANTIZATION_NAME, RESULTS_NAME
from ssql_det.detect.training_checkpoint import FINAL_NAME
from ssql_det.pretrain.analyze_checkpoints import name_checkpoints
from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME
from ssql_det.pretrain.config import read_config
from ssql_det.quant import parse_bit_widths
from ssql_det.report.published import load_published_table
from ssql_det.reproduce.presets import PRESETS, get_preset
from ssql_det.toydata.dataset import MANIFEST, ToyDataSettings, make_toy_data

pytestmark = pytest.mark.slow

CHECKPOINTS = {"IN supervised": "in.pth", "BYOL": "byol.pth"}
PLANS = {
    "mini": {},
    "small": {"budget": 0.05},
    "small whole": {"seeds": 2, "num_gpus": 2, "checkpoints": CHECKPOINTS},
    "paper": {"tables": (6,), "checkpoints": CHECKPOINTS, "num_gpus": 8},
    "paper both": {},
    "mini probes": {"tables": (1, 8, 12), "seeds": 2},
    "small ablation": {"tables": (8, 6), "checkpoints": {"SSQL": "ssql.pth"}},
    "paper probes": {"tables": (12, 1, 8, 3)},
    "paper given": {"tables": (8,), "checkpoints": {"(d)": "d.pth"}},
    "paper masks": {"tables": (7,), "checkpoints": CHECKPOINTS | {"SSQL": "ssql.pth"}, "bits": "FP,4"},
}
parser, read_config_file = make_parser(), cache(uncached)


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(params=PLANS)
def plan(request):
    return build_plan(request.param.split()[0], **PLANS[request.param])


@cache
def parse_step(step):
    """A step's options, and its config if it has one."""
    options = parser.parse_args(step.arguments)
    if options.command == "pretrain":
        return options, read_config(options.config_file, options.overrides)
    if options.command in ("train-det", "sweep", "predict"):
        overrides = _split_keys_and_images(options.rest)[0] if options.command == "predict" else options.overrides
        return options, d2.read_config(options.config_file, overrides, SSQL_DET_DEFAULTS)
    return options, None


def test_every_command_is_valid_and_names_its_inputs_and_outputs(plan):
    for step in plan.steps:
        options, cfg = parse_step(step)
        read = {path.as_posix() for path in step.inputs}
        if cfg is not None:
            assert options.config_file in read
        match options.command:
            case "make-toy-data":
                size = dict(zip(("least_side", "most_side"), options.size, strict=True))
                counts = {name: getattr(options, name) for name in ("scenes", "crops", "crop_size", "difficulty")}
                assert ToyDataSettings(**size, **counts, seed=options.seed) == plan.preset.data
                assert step.outputs == (Path(options.out) / MANIFEST,)
            case "pretrain":
                assert options.resume
                assert step.outputs == (Path(cfg.output_dir) / CHECKPOINT_NAME,)
                assert (f"{plan.datasets_root}/crops" == cfg.data.train) == (plan.preset.data is not None)
            case "convert":
                assert options.to == "detectron2"
                assert options.to in [each.name for each in FORMATS if each.writer]
                assert options.force  # a file left by a kill is overwritten
                assert (read, step.outputs) == ({options.checkpoint}, (Path(options.out),))
            case "train-det":
                assert options.resume
                assert cfg.MODEL.WEIGHTS in (read | {""})
                assert step.outputs == (Path(cfg.OUTPUT_DIR) / f"{FINAL_NAME}.pth",)
            case "sweep":
                assert cfg.MODEL.WEIGHTS in read
                assert list(map(str, parse_bit_widths(options.bits))) == list(
                    map(str, parse_bit_widths(plan.preset.bits))
                )
                assert options.scheme is None  # so it is minmax
                assert step.outputs == tuple(Path(cfg.OUTPUT_DIR) / name for name in (RESULTS_NAME, QUANTIZATION_NAME))
            case "predict":
                assert {cfg.MODEL.WEIGHTS, options.quantization} <= read
                images = [Path(each) for each in _split_keys_and_images(options.rest)[1]]
                assert step.outputs == tuple(Path(options.out) / f"{image.stem}.png" for image in images)
                assert all(image.is_relative_to(plan.datasets_root) for image in images)
            case "probe":
                assert options.resume
                assert {options.checkpoint} <= read
                assert step.outputs == (Path(options.out),)
                assert (f"{plan.datasets_root}/crops" == options.data) == (plan.preset.data is not None)
                assert (options.protocol == "published") == (plan.preset.data is None)
                assert "linear" in options.kind
                assert (options.scheme, options.calib_images) == (None, 512)  # minmax, as the values on the pages
            case "analyze":
                assert read == {*options.checkpoints, (plan.datasets_root / MANIFEST).as_posix()}
                assert options.data == f"{plan.datasets_root}/crops"
                assert (options.scheme, options.calib_images) == ("minmax", 512)
                maps = [Path(options.out) / f"tsne_{name}.png" for name in name_checkpoints(options.checkpoints)]
                assert step.outputs == (Path(options.out) / "terms.csv", *maps)
                assert all(name.endswith("-0") for name in name_checkpoints(options.checkpoints))
        assert all(path.is_relative_to(step.folder) for path in step.outputs)
        assert step.minutes > 0 < step.megabytes


def test_inputs_are_outputs_of_earlier_steps(plan):
    existing = {Path(file) for file in (*CHECKPOINTS.values(), "ssql.pth", "d.pth")} | set(
        Path().glob("configs/**/*.yaml")
    )
    for step in plan.steps:
        assert set(step.inputs) <= existing, step.name
        assert not existing & set(step.outputs)
        existing |= set(step.outputs)
        if plan.preset.data and step.kind in ("pretrain", "train", "sweep", "predict", "probe"):
            assert plan.datasets_root / MANIFEST in step.inputs


def test_names_are_unique_and_folders_separate(plan):
    assert set(Counter(step.name for step in plan.steps).values()) == {1}
    for first, second in itertools.permutations(plan.steps, 2):
        assert not first.folder.is_relative_to(second.folder), (first.name, second.name)
    assert all(step.folder.is_relative_to(plan.out) for step in plan.steps)


def test_sweeps_and_drawings_use_the_backbone_of_their_method(plan):
    """Also trainings: all use the backbone and the seed of their method."""
    makers = {path.as_posix(): step for step in plan.steps for path in step.outputs}
    for step in plan.steps:
        if step.kind not in ("sweep", "predict"):
            continue
        _, cfg = parse_step(step)
        detector = parse_step(makers[cfg.MODEL.WEIGHTS])[1]
        same = ("SSQL_DET.METHOD", "SOLVER.MAX_ITER", "DATASETS.TEST")
        assert all(get_value(cfg, key) == get_value(detector, key) for key in same)
        assert step.name.endswith(f"-{detector.SEED}")
        backbone = detector.MODEL.WEIGHTS
        assert (backbone == "") == (cfg.SSQL_DET.METHOD == "random init.")
        source = backbone and parse_step(makers[backbone])[0].checkpoint
        if source in makers:
            pretrained = parse_step(makers[source])[1]
            assert cfg.SSQL_DET.METHOD.startswith("SSQL") == (pretrained.ssql is not None)
            assert ("200ep" in makers[source].name) == ("200ep" in cfg.SSQL_DET.METHOD)
            assert (detector.SEED if plan.preset.pretrains_each_seed else 0) == pretrained.seed
        elif source:
            assert source == {**CHECKPOINTS, "SSQL": "ssql.pth"}[cfg.SSQL_DET.METHOD]


def get_value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_every_published_row_has_a_sweep_or_a_reason(plan):
    swept = {
        (parse_step(step)[1].SSQL_DET.METHOD, step.name.split("-")[1]) for step in plan.steps if step.kind == "sweep"
    }
    for table in set(plan.options.tables) & {6, 7}:
        for method in load_published_table(table).methods:
            reasons = [reason for reason in plan.left_out if reason.startswith(f"{method} of Table {table}: ")]
            assert len(reasons) == ((method.removesuffix(" (ours)"), {6: "c4", 7: "fpn"}[table]) not in swept)


def test_images_to_draw_are_test_images_of_the_toy_data(tmp_path):
    for name in ("mini", "small"):
        plan = build_plan(name, tmp_path / name, budget=0.001)
        make_toy_data(plan.datasets_root, plan.preset.data, workers=2)
        tested = (plan.datasets_root / "VOC2007/ImageSets/Main/test.txt").read_text().split()
        for step in plan.steps:
            for image in _split_keys_and_images(parse_step(step)[0].rest)[1] if step.kind == "predict" else ():
                assert Path(image).is_file()
                assert f"{int(Path(image).stem):06d}" in tested


@settings(max_examples=12, deadline=None)
@given(st.floats(0, 1, exclude_min=True))
def test_a_budget_scales_down_to_the_minimums(budget):
    for name in ("mini", "small"):
        tables = get_preset(name).tables
        plan, full_plan = (build_plan(name, budget=share, seeds=1, tables=tables) for share in (budget, 1.0))
        data, full_data = plan.preset.data, PRESETS[name].data
        assert (data.scenes, data.crops) == (
            max(24, round(full_data.scenes * budget)),
            max({"mini": 200, "small": 400}[name], round(full_data.crops * budget)),
        )
        assert sorted(step.name for step in plan.steps) == sorted(step.name for step in full_plan.steps)
        assert sum(step.minutes for step in plan.steps) <= sum(step.minutes for step in full_plan.steps)
        for step in plan.steps:
            options = dict(itertools.pairwise(step.arguments))
            config = step.kind not in ("data", "convert", "analyze", "probe") and read_config_file(step.inputs[0])
            if step.kind == "pretrain":
                assert data.crops - data.crops // 5 >= config["OPTIM.BATCH"]
            elif step.kind in ("train", "sweep", "predict"):
                iterations = config["SOLVER.MAX_ITER"]
                assert int(options.get("SOLVER.MAX_ITER", iterations)) == max(4, round(iterations * budget))
            if step.kind == "sweep":
                assert 4 <= int(options["--calib-images"]) == max(4, round(64 * budget)) <= data.scenes // 2


def test_published_recipes_have_no_budget():
    with pytest.raises(UserError, match="--budget shortens runs on toy data; the preset paper has none"):
        build_plan("paper", budget=0.5)
