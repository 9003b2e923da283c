"""The recipes of the published detection tables, spelled out, and the configs that have to be them: one for each row.

VOC: MoCo's detection transfer (He et al., CVPR 2020), with the 24k schedule. COCO: Detectron2's 1x, norms trained. Both
with the anchors, proposals and samples of Detectron2's model zoo.
"""

from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import torchvision
from support.detect.configs import CONFIGS, full_config
from support.reproduce.plans import ROOT, build_plan
from torch import nn

from ssql_det.cli.main import make_parser
from ssql_det.core.config import flatten_config, read_config_file
from ssql_det.d2 import get_cfg, read_config
from ssql_det.detect import SSQL_DET_DEFAULTS
from ssql_det.detect.config import DEFAULT_VALUES
from ssql_det.detect.detector import build_detector, load_pretrained_detector
from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME
from ssql_det.report.display_names import match_published_name
from ssql_det.report.published import load_published_table

BOTH = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.AMP.ENABLED": False,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
C4 = BOTH | {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "SSQL_DET.EXTRA_NORM": "naiveSyncBN",
    "MODEL.MASK_ON": False,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.ROI_HEADS.NAME": "C4ROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
    "DATASETS.TEST": ["voc_2007_test"],
    "INPUT.MIN_SIZE_TRAIN": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    "SOLVER.MAX_ITER": 24000,
    "SOLVER.STEPS": [18000, 22000],
    "SOLVER.WARMUP_ITERS": 100,
}
FPN = BOTH | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "SSQL_DET.EXTRA_NORM": "",
    "MODEL.MASK_ON": True,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": [60000, 80000],
    "SOLVER.WARMUP_ITERS": 1000,
}
R18, R34, R50 = (
    {"MODEL.RESNETS.DEPTH": depth, "MODEL.RESNETS.RES2_OUT_CHANNELS": channels}
    for depth, channels in ((18, 64), (34, 64), (50, 256))
)
RECIPES = {
    "voc_r18_c4.yaml": C4 | R18,
    "voc_r34_c4.yaml": C4 | R34,
    "voc_r50_c4.yaml": C4 | R50,
    "coco_mask_r18_fpn.yaml": FPN | R18,
    "coco_mask_r34_fpn.yaml": FPN | R34,
    "coco_mask_r50_fpn.yaml": FPN | R50,
}
RECIPE_BY_TABLE = {6: "voc_r18_c4.yaml", 7: "coco_mask_r50_fpn.yaml"}
ROWS = {
    f"table{number}/{path.name}": number
    for number in RECIPE_BY_TABLE
    for path in sorted((CONFIGS / f"table{number}").glob("*.yaml"))
}
ROW_KEYS = {"SSQL_DET.METHOD", "MODEL.WEIGHTS", "OUTPUT_DIR"}
PRETRAINED_HERE = {name: number for name, number in ROWS.items() if "simsiam" in name or "ssql" in name}


@cache
def load_values(name):
    return flatten_config(full_config(name))


def without_keys(keys, values):
    return {key: value for key, value in values.items() if key not in keys}


@pytest.mark.parametrize("name", [*RECIPES, *ROWS])
def test_a_config_is_the_recipe_and_otherwise_the_defaults(name):
    values = load_values(name)
    expected = RECIPES[RECIPE_BY_TABLE[ROWS[name]] if name in ROWS else name]
    assert {key: values[key] for key in expected} == expected
    defaults = flatten_config(get_cfg()) | DEFAULT_VALUES
    free = ROW_KEYS | {"MODEL.DEVICE"}
    assert without_keys({*expected, *free}, values) == without_keys({*expected, *free}, defaults)


def test_row_configs_differ_from_their_recipe_only_in_method_backbone_and_folder():
    for name, number in ROWS.items():
        assert without_keys(ROW_KEYS, load_values(name)) == without_keys(ROW_KEYS, load_values(RECIPE_BY_TABLE[number]))


def test_every_config_has_its_own_output_folder():
    folders = Counter(load_values(name)["OUTPUT_DIR"] for name in (*RECIPES, *ROWS))
    assert set(folders.values()) == {1}


@pytest.mark.parametrize("number", RECIPE_BY_TABLE)
def test_every_published_row_has_one_config(number):
    methods = load_published_table(number).methods
    named = [
        match_published_name(load_values(name)["SSQL_DET.METHOD"], methods) for name in ROWS if ROWS[name] == number
    ]
    assert Counter(named) == Counter(methods)


def test_only_the_random_init_row_has_no_weights():
    """A row that is to have a backbone cannot begin without one unnoticed."""
    empty = [name for name in ROWS if not load_values(name)["MODEL.WEIGHTS"]]
    assert empty == ["table6/random_init.yaml"]


@pytest.mark.parametrize("name", PRETRAINED_HERE)
def test_a_backbones_path_is_that_of_its_pretraining(name):
    weights, method = (load_values(name)[key] for key in ("MODEL.WEIGHTS", "SSQL_DET.METHOD"))
    (config,) = (
        file
        for file in (ROOT / "configs/pretrain").glob("*.yaml")
        if Path(read_config_file(file)["OUTPUT_DIR"]) / CHECKPOINT_NAME == Path(weights)
    )
    assert f"configs/pretrain/{config.name}" in (CONFIGS / name).read_text("utf-8")
    pretraining = read_config_file(config)
    assert pretraining["BACKBONE"] == {6: "resnet18", 7: "resnet50"}[ROWS[name]]
    assert pretraining["SSQL.ENABLED"] == method.startswith("SSQL")
    assert pretraining["OPTIM.EPOCHS"] == (200 if method.endswith("-200ep") else 100)


@pytest.mark.parametrize("number", RECIPE_BY_TABLE)
def test_a_supervised_row_loads_torchvisions_file(number, tmp_path, monkeypatch):
    name = {6: "resnet18", 7: "resnet50"}[number]
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / ".cache/torch"))
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    file.parent.mkdir(parents=True)
    network = torchvision.models.get_model(name, weights=None)
    torch.save(network.state_dict(), file)
    detector, _, coverage = load_pretrained_detector(full_config(f"table{number}/imagenet_supervised.yaml"))
    assert coverage.percent == 100
    last = detector.roi_heads.res5 if number == 6 else detector.backbone.bottom_up.res5
    assert torch.equal(last[0].conv1.weight, network.layer4[0].conv1.weight)


def convs(module):
    """Shapes, strides and paddings of a stage, in whatever order."""
    found = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    return Counter((tuple(each.weight.shape), each.stride, each.padding) for each in found)


@pytest.mark.parametrize("name", RECIPES)
def test_a_detector_has_torchvisions_backbone_and_the_recipes_anchors(name):
    recipe, detector = RECIPES[name], build_detector(full_config(name))
    depth, sizes = recipe["MODEL.RESNETS.DEPTH"], recipe["MODEL.ANCHOR_GENERATOR.SIZES"]
    network = torchvision.models.get_model(f"resnet{depth}", weights=None)
    is_c4 = recipe["MODEL.ROI_HEADS.NAME"] == "C4ROIHeads"
    backbone = detector.backbone if is_c4 else detector.backbone.bottom_up
    assert convs(backbone.stem) == convs(network.conv1)
    for index, stage in enumerate((network.layer1, network.layer2, network.layer3, network.layer4), 2):
        ours = detector.roi_heads.res5 if is_c4 and index == 5 else getattr(backbone, f"res{index}")
        assert convs(ours) == convs(stage), f"res{index}"

    levels = detector.proposal_generator.anchor_generator.cell_anchors
    for boxes, of_level in zip(levels, sizes, strict=True):
        width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
        sides, ratios = (width * height).sqrt().round().tolist(), (height / width).tolist()
        found = [(side, round(ratio, 3)) for side, ratio in zip(sides, ratios, strict=True)]
        assert sorted(found) == [(size, ratio) for size in of_level for ratio in (0.5, 1.0, 2.0)]


@pytest.mark.parametrize("number", RECIPE_BY_TABLE)
def test_reproduce_trains_the_row_configs(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = {"IN supervised": "in.pth", "BYOL": "byol.pth"}
    plan = build_plan("paper", tables=(number,), seeds=1, checkpoints=given)
    of_a_run = {"MODEL.WEIGHTS", "MODEL.DEVICE", "SEED", "OUTPUT_DIR"}
    trained = []
    for options in (make_parser().parse_args(step.arguments) for step in plan.steps if step.kind == "train"):
        values = flatten_config(read_config(options.config_file, options.overrides, SSQL_DET_DEFAULTS))
        trained.append(without_keys(of_a_run, values))
    rows = [without_keys(of_a_run, load_values(name)) for name in ROWS if ROWS[name] == number]
    assert sorted(trained, key=str) == sorted(rows, key=str)
