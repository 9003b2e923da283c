"""Scenarios of whole detectors, which run in both engines; see ``record_answers.py``.

Small ones are recorded; the reference detectors in full size are compared live. The two images have different, odd
sizes; one has ground truth, one has none.
"""

import numpy as np
import torch
from support.minid2.modules import (
    SIZES,
    add_prefix,
    compute_gradients,
    describe_state,
    make_ground_truth,
    make_storage,
    nms_of_doubles,
    seed_weights,
    small_config,
)
from support.minid2.structures_and_layers import random_tensor


def full_config(engine, name, *keys):
    cfg = engine("config").get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [58.4, 57.1, 57.4]
    if "R18" in name:
        cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    if "FPN" in name:
        levels = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = levels
        cfg.MODEL.FPN.IN_FEATURES = levels
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
        cfg.MODEL.RPN.update({"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"], "POST_NMS_TOPK_TRAIN": 1000})
        cfg.MODEL.ROI_HEADS.update({"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]})
        cfg.MODEL.ROI_BOX_HEAD.update({"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7})
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 4
    cfg.MODEL.MASK_ON = "Mask" in name
    cfg.merge_from_list(list(keys))
    return cfg


def build(engine, cfg, seed=0):
    """A model of the config; an R18-C4 gets a res5 of its depth, since Res5ROIHeads builds bottlenecks at any depth."""
    torch.manual_seed(seed)
    model = engine("modeling").build_model(cfg)
    if cfg.MODEL.RESNETS.DEPTH == 18 and cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
        kit = engine("modeling.backbone.resnet")
        stage = {"in_channels": 256, "out_channels": 512, "stride_per_block": [2, 1], "norm": cfg.MODEL.RESNETS.NORM}
        model.roi_heads.res5 = torch.nn.Sequential(*kit.ResNet.make_stage(kit.BasicBlock, 2, **stage))
    return model


NORMED = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
REFERENCES = {
    "R18-C4": (),
    "R18-C4 normed": NORMED,
    "R50-C4": (),
    "Mask R50-FPN": (),
    "Mask R50-FPN normed": NORMED,
    "Mask R50-FPN all normed": (*NORMED, "MODEL.FPN.NORM", "BN"),
}


def states(engine):
    """Names, shapes and starting values of the reference detectors."""
    answers = {}
    for name, keys in REFERENCES.items():
        answers |= add_prefix(name, describe_state(build(engine, full_config(engine, name, *keys))))
    return answers


def inputs(engine, sizes, masks):
    output_sizes = [{"height": 100, "width": 77}, {}]
    pixels = [random_tensor(20 + index, 3, *size).abs() * 100 for index, size in enumerate(sizes)]
    return [
        {"image": image.to(torch.uint8), "instances": truth, **size}
        for image, truth, size in zip(pixels, make_ground_truth(engine, masks), output_sizes, strict=True)
    ]


def detect(engine, model, masks):
    """Detections, also of known boxes and of no proposals."""
    answers = {}
    batch = inputs(engine, SIZES, masks)
    with torch.no_grad(), nms_of_doubles():
        found = [each["instances"] for each in model.eval()(batch)]
        raw = model.inference(batch, do_postprocess=False)
        given = model.inference(batch, raw)
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        none, _ = model.roi_heads(images, features, [each[:0] for each in proposals], None)
    for image, each in enumerate(found):
        answers |= {
            f"{image} boxes": each.pred_boxes.tensor,
            f"{image} scores": each.scores,
            f"{image} classes": each.pred_classes,
        }
        answers |= {
            f"{image} proposals": proposals[image].proposal_boxes.tensor[:50],
            f"{image} none": none[image].pred_boxes.tensor,
        }
        if each.has("pred_masks"):
            answers |= {
                f"{image} masks": np.packbits(each.pred_masks),
                f"{image} known": np.packbits(given[image]["instances"].pred_masks),
            }
            answers[f"{image} none masks"] = none[image].pred_masks
    return answers


def train(engine, model, weights, masks):
    """Losses, gradients and statistics of one step."""
    storage, scalars = make_storage(engine)
    torch.manual_seed(9)
    with storage, nms_of_doubles():
        losses = model.train()(inputs(engine, SIZES, masks))
    answers = {**losses, **scalars()}
    chosen = {name: parameter for name, parameter in model.named_parameters() if any(each in name for each in weights)}
    assert chosen
    answers |= {name: value.float() for name, value in compute_gradients(sum(losses.values()), chosen).items()}
    statistics = [value for name, value in model.state_dict().items() if "running_mean" in name]
    return answers | {"statistics": torch.cat(statistics)}


SMALL = {
    "R50-C4": ("C4", ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8, *NORMED]),
    "Mask R50-FPN": ("FPN", [*NORMED, "MODEL.FPN.NORM", "BN"]),
    "grouped": ("C4", ["MODEL.RESNETS.NUM_GROUPS", 2, *NORMED]),
    "frozen": ("FPN", ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True]),
}
FEW = ("MODEL.RPN.POST_NMS_TOPK_TEST", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 80, "TEST.DETECTIONS_PER_IMAGE", 40)
WEIGHTS = ("stem.conv1.weight", "fpn_lateral2", "fpn_lateral5", "rpn_head", "box_predictor", "mask_head.predictor")


def small_detectors(engine):
    answers = {}
    for name, (kind, keys) in SMALL.items():
        cfg = small_config(engine, kind)
        cfg.merge_from_list([*keys, *FEW])
        model = seed_weights(build(engine, cfg))
        answers |= add_prefix(name, detect(engine, model, "polygons"))
        trains = [each for each in WEIGHTS if name != "frozen" or "stem" not in each]
        answers |= add_prefix(name, train(engine, model, trains, "bits" if kind == "C4" else "polygons"))
    return answers


def basic_detector(engine):
    """R18-C4, at its full width, as it has no other."""
    cfg = full_config(engine, "R18-C4", *NORMED, *FEW, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 10
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12, 24, 48]]
    model = seed_weights(build(engine, cfg))
    answers = detect(engine, model, None)
    return answers | train(
        engine, model, ("stem.conv1.weight", "cls_score", "objectness_logits", "anchor_deltas.bias"), None
    )


def reference_detectors(engine):
    """The reference detectors in full size."""
    answers = {}
    for name in ("R18-C4", "R50-C4", "Mask R50-FPN"):
        cfg = full_config(engine, name, *NORMED, *FEW)
        model = seed_weights(build(engine, cfg))
        masks = "polygons" if cfg.MODEL.MASK_ON else None
        answers |= add_prefix(name, detect(engine, model, masks))
        answers |= add_prefix(name, train(engine, model, (*WEIGHTS, "res2.0.conv1", "res5.0.shortcut"), masks))
    return answers


SCENARIOS = (states, small_detectors, basic_detector)
LIVE_ONLY = (reference_detectors,)
