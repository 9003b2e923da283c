"""Detectors as Detectron2's model zoo publishes them are swept without conversion."""

import pickle
from pathlib import Path

import pytest
import torch

import ssql_det
from ssql_det.cli.main import main
from ssql_det.core.errors import UserError
from ssql_det.core.rows import read_rows
from ssql_det.d2 import build_model, read_config
from ssql_det.detect import SSQL_DET_DEFAULTS
from ssql_det.detect.detector import load_trained_detector

ZOO = Path(ssql_det.__file__).parents[1] / "configs" / "detection" / "zoo"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "5",
    "MODEL.ROI_HEADS.NUM_CLASSES": "10",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "32",
    "MODEL.FPN.OUT_CHANNELS": "32",
    "INPUT.MIN_SIZE_TEST": "64",
    "DATALOADER.NUM_WORKERS": "0",
    "DATASETS.TRAIN": "('toy_coco_2017_train',)",
    "DATASETS.TEST": "('toy_coco_2017_val',)",
}
# A C4 detector of the zoo has bottlenecks; a basic network has none there.
CONFIGS = {"mask_r50_fpn": SMALL, "faster_r50_fpn": SMALL}


def overrides(settings):
    return [each for pair in settings.items() for each in pair]


def published(config, path, drop=(), **more):
    """The file as the zoo has it: arrays, an author, and of an old one anchors and the images' mean."""
    torch.manual_seed(0)
    cfg = read_config(ZOO / f"{config}.yaml", overrides(CONFIGS[config]), SSQL_DET_DEFAULTS)
    model = build_model(cfg)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name not in drop}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4).numpy()
    arrays["pixel_mean"] = model.pixel_mean.numpy()
    content = {"model": {**arrays, **more}, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content))
    return path, model


@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_zoo_detector_is_swept_without_conversion(config, tmp_path, capsys):
    path, model = published(config, tmp_path / "model_final_f10217.pkl")
    settings = CONFIGS[config] | {"MODEL.WEIGHTS": str(path), "OUTPUT_DIR": str(tmp_path / "sweep")}
    command = ["sweep", "--config-file", str(ZOO / f"{config}.yaml"), "--bits", "FP,4", "--calib-images", "2"]
    main([*command, *overrides(settings)])
    found = read_rows(tmp_path / "sweep" / "results.jsonl")
    assert [row.bits for row in found] == ["FP", "4w4a"]
    assert all(row.checkpoint == "model_final_f10217.pkl" for row in found)
    assert ("segm/AP" in found[0].metrics) == config.startswith("mask")
    assert "4w4a" in capsys.readouterr().out
    cfg = read_config(ZOO / f"{config}.yaml", overrides(settings), SSQL_DET_DEFAULTS)
    loaded = load_trained_detector(cfg)[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("drop", "more", "said"),
    [
        (["roi_heads.box_head.fc1.bias"], {}, "roi_heads.box_head.fc1.bias is not in the checkpoint"),
        ([], {"roi_heads.extra.weight": torch.zeros(2).numpy()}, "roi_heads.extra.weight is not in the network"),
        (["backbone.bottom_up.res4.1.conv2.weight"], {}, "1 tensor(s) are missing"),
    ],
    ids=["missing", "too many", "of the backbone"],
)
def test_a_detector_that_does_not_fit_is_refused(drop, more, said, tmp_path):
    path, _ = published("mask_r50_fpn", tmp_path / "x.pkl", drop, **more)
    cfg = read_config(ZOO / "mask_r50_fpn.yaml", overrides({**SMALL, "MODEL.WEIGHTS": str(path)}), SSQL_DET_DEFAULTS)
    with pytest.raises(UserError) as refusal:
        load_trained_detector(cfg)
    assert said in str(refusal.value)


def test_a_config_with_another_input_format_is_refused(tmp_path):
    path, _ = published("mask_r50_fpn", tmp_path / "x.pkl")
    settings = {**SMALL, "MODEL.WEIGHTS": str(path), "INPUT.FORMAT": "RGB"}
    cfg = read_config(ZOO / "mask_r50_fpn.yaml", overrides(settings), SSQL_DET_DEFAULTS)
    with pytest.raises(UserError, match=r"was trained with another input format .* set INPUT\.FORMAT BGR"):
        load_trained_detector(cfg)


@pytest.mark.parametrize("config", [path.stem for path in sorted(ZOO.glob("*.yaml"))])
def test_each_zoo_config_has_the_models_tensor_names(config):
    """As many as Detectron2's own configs give: 275 for R50-C4, 307 for Mask R50-FPN."""
    cfg = read_config(ZOO / f"{config}.yaml", ["MODEL.DEVICE", "cpu"], SSQL_DET_DEFAULTS).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"  # nobody trains there, so no command takes it
    with torch.device("meta"):
        names = build_model(cfg).state_dict()
    assert len(names) == {"faster_r50_c4": 275, "mask_r50_c4": 279, "faster_r50_fpn": 295, "mask_r50_fpn": 307}[config]
