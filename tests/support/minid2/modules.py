"""Scenarios of a detector's single modules, which run in both engines; see ``record_answers.py``.

Weights are seeded and the numbers float64, so that no tie is decided by a CPU's rounding.
"""

from unittest import mock

import numpy as np
import torch
import torchvision
from support.minid2.structures_and_layers import POLYGONS, random_boxes, random_tensor

SIZES = [(61, 83), (64, 50)]


def seed_weights(module):
    """Weights that keep activations near 1 in any depth, spread logits, and move boxes by a share of their size."""
    for index, (name, value) in enumerate(module.state_dict().items()):
        if not value.dtype.is_floating_point:
            continue
        noise = random_tensor(index, *value.shape, dtype=torch.float64)
        if name.endswith("running_var"):
            noise = 1 + 0.2 * noise.abs()
        elif value.dim() == 1:
            noise = 0.1 * noise + (0.5 if name.endswith("norm.weight") else 0)
        else:
            noise *= (2 / value[0].numel()) ** 0.5 * (0.2 if "anchor_deltas" in name else 1)
        value.copy_(noise)
    return module.double()


def encode_text(text):
    """A text as an array of its bytes."""
    return np.frombuffer(text.encode(), np.uint8)


def describe_state(module):
    """Names and shapes of a state dict, and a summary of its values."""
    state = module.state_dict()
    keys = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    return {"keys": encode_text(keys), **summarize_tensors(state.values())}


def summarize_tensors(tensors):
    """Of each tensor the logarithm of its mean magnitude; and its mean, first and last value in mean magnitudes."""
    rows = [each.double().flatten() for each in tensors]
    sizes = [each.abs().mean().clamp(min=1e-12) for each in rows]
    shares = [torch.stack([each.mean(), each[0], each[-1]]) / size for each, size in zip(rows, sizes, strict=True)]
    return {"shares": torch.stack(shares).clamp(-50, 50), "sizes": torch.stack(sizes).log()}


def add_prefix(prefix, answers):
    return {f"{prefix} {name}".strip(): value for name, value in answers.items()}


def compute_gradients(loss, tensors):
    found = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    return {f"gradient of {name}": value for name, value in zip(tensors, found, strict=True)}


def make_storage(engine, iteration=0):
    """A storage, and a function that gives its last values."""
    storage = engine("utils.events").EventStorage(iteration)
    return storage, lambda: {name: np.array(value) for name, (value, _) in storage.latest().items()}


def nms_of_doubles():
    """Let torchvision's NMS take scores of another dtype than the boxes, which are always float32."""
    nms = torchvision.ops.nms
    return mock.patch("torchvision.ops.boxes.nms", lambda boxes, scores, iou: nms(boxes, scores.float(), iou))


def events(engine):
    kit = engine("utils.events")
    with kit.EventStorage(7) as storage:
        for index in range(50):
            storage.put_scalar("noisy", index * 7 % 11)
            if index % 3 == 0:
                storage.put_scalars(rate=index / 10, smoothing_hint=False)
            if index % 10 == 4:
                with storage.name_scope("eval/"):
                    kit.get_event_storage().put_scalar("AP", index, cur_iter=index)
            storage.step()
        smoothed = storage.latest_with_smoothing_hint(20)
        counts = [storage.count_samples(name, window) for name in storage.histories() for window in (1, 20, 500)]
    return {
        "names": encode_text(",".join(storage.latest())),
        "latest": np.array(list(storage.latest().values())),
        "smoothed": np.array(list(smoothed.values())),
        "counts": np.array(counts),
        "hints": np.array(list(storage.smoothing_hints().values())),
        "history": np.array(storage.history("eval/AP").values()),
        "ended": np.array([storage.iter, kit.has_event_storage()]),
    }


def blocks(engine):
    kit, answers = engine("modeling.backbone.resnet"), {}
    stage = {"in_channels": 8, "out_channels": 12, "bottleneck_channels": 4}
    stage |= {"stride_per_block": [2, 1, 1], "dilation_per_block": [1, 1, 2]}
    makers = {
        "basic": lambda: kit.BasicBlock(8, 8, norm="BN"),
        "basic stride": lambda: kit.BasicBlock(8, 12, stride=2, norm="FrozenBN"),
        "bottleneck": lambda: kit.BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, norm="BN"),
        "MSRA": lambda: kit.BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, stride_in_1x1=True, norm="LN"),
        "dilated": lambda: kit.BottleneckBlock(8, 8, bottleneck_channels=4, num_groups=2, dilation=2, norm="BN"),
        "stem": lambda: kit.BasicStem(8, 6, norm="FrozenBN"),
        "stage": lambda: torch.nn.Sequential(*kit.ResNet.make_stage(kit.BottleneckBlock, 3, **stage)),
    }
    for name, make in makers.items():
        torch.manual_seed(1)
        block = make()
        answers |= add_prefix(name, describe_state(block))
        seed_weights(block)
        x = random_tensor(3, 2, 8, 13, 11, dtype=torch.float64).requires_grad_()
        for training in (True, False):
            out = block.train(training)(x)
            answers |= {
                f"{name} {training}": out,
                **add_prefix(f"{name} {training}", compute_gradients(out.square().sum(), {"x": x})),
            }
    for depth in (18, 50):
        torch.manual_seed(1)
        stages = kit.ResNet.make_default_stages(depth, norm="FrozenBN")[:2]
        answers |= add_prefix(f"default {depth}", describe_state(torch.nn.ModuleList(map(torch.nn.ModuleList, stages))))
    stages = [kit.ResNet.make_stage(kit.BasicBlock, 1, in_channels=6, out_channels=6)] * 2
    net = kit.ResNet(kit.BasicStem(3, 6), stages, num_classes=5, freeze_at=2)
    seed_weights(net)
    answers |= {"logits": net(random_tensor(4, 2, 3, 32, 40, dtype=torch.float64))["linear"]}
    answers["trains"] = np.array([parameter.requires_grad for parameter in net.parameters()])
    answers["frozen"] = np.array([type(each).__name__.startswith("Frozen") for each in net.modules()])
    return answers


def small_config(engine, name="FPN"):
    """The reference detectors with few channels."""
    cfg = engine("config").get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [58.4, 57.1, 57.4]
    resnet = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4, "STRIDE_IN_1X1": False}
    cfg.MODEL.RESNETS.update(resnet)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 6
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12, 24, 48]]
    if name == "FPN":
        levels = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = levels
        cfg.MODEL.FPN.update({"IN_FEATURES": levels, "OUT_CHANNELS": 8})
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ROI_HEADS.update({"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]})
        cfg.MODEL.ROI_BOX_HEAD.update({"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "FC_DIM": 24})
        cfg.MODEL.ROI_MASK_HEAD.update({"NUM_CONV": 2, "CONV_DIM": 8, "POOLER_RESOLUTION": 7})
        cfg.MODEL.MASK_ON = True
    return cfg


def pyramids(engine):
    answers = {}
    for name, keys in {
        "plain": [],
        "normed": ["MODEL.FPN.NORM", "BN", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0],
        "average": ["MODEL.FPN.FUSE_TYPE", "avg", "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]],
        "groups": ["MODEL.RESNETS.NUM_GROUPS", 2],
        "dilated": ["MODEL.RESNETS.RES5_DILATION", 2, "MODEL.BACKBONE.NAME", "build_resnet_backbone"],
    }.items():
        cfg = small_config(engine)
        cfg.merge_from_list(keys)
        torch.manual_seed(2)
        net = engine("modeling").build_backbone(cfg)
        answers |= add_prefix(name, describe_state(net))
        answers[f"{name} needs"] = np.array([net.size_divisibility, len(net.padding_constraints)])
        shapes = net.output_shape()
        answers[f"{name} shapes"] = np.array([(each.channels, each.stride) for each in shapes.values()])
        features = seed_weights(net)(random_tensor(5, 1, 3, 64, 96, dtype=torch.float64))
        answers |= add_prefix(name, features)
        if name != "dilated":
            lateral = {"lateral": net.fpn_lateral3.weight, "output": net.fpn_output4.weight}
            answers |= add_prefix(
                name, compute_gradients(sum(each.square().mean() for each in features.values()), lateral)
            )
    return answers


def make_ground_truth(engine, masks=None):
    """Two images' ground truth: three instances, one of them at the border, and none."""
    kit, answers = engine("structures"), []
    for size, count in zip(SIZES, (3, 0), strict=True):
        boxes = torch.tensor([[3.0, 2, 31, 36], [50.5, 30.25, 83, 61], [8, 9, 20, 40.5]])[:count]
        instances = kit.Instances(size, gt_boxes=kit.Boxes(boxes), gt_classes=torch.tensor([4, 0, 2])[:count])
        polygons = [[np.array(each, float) for each in instance] for instance in POLYGONS[:count]]
        if masks == "polygons":
            instances.gt_masks = kit.PolygonMasks(polygons)
        elif masks == "bits":
            instances.gt_masks = kit.BitMasks.from_polygon_masks(polygons, *size)
        answers.append(instances)
    return answers


def proposal_networks(engine):
    """The RPN: its head, its sample, its losses, its proposals."""
    answers = {}
    find = engine("modeling.proposal_generator.proposal_utils").find_top_rpn_proposals
    boxes = [torch.stack([random_boxes(2 * level + image, 40, 80) for image in (0, 1)]) for level in (0, 1)]
    logits = [random_tensor(level, 2, 40) for level in (0, 1)]
    for name, limits in {"all": (100, 100, 0), "few": (30, 12, 3.0)}.items():
        for image, each in enumerate(find(boxes, logits, SIZES, 0.7, *limits, False)):
            answers |= {f"{name} {image} boxes": each.proposal_boxes.tensor, f"{name} {image}": each.objectness_logits}
    boxes[0][0, 3, 1], logits[1][1, 5], logits[0][1, 6] = float("nan"), float("inf"), float("nan")
    for image, each in enumerate(find(boxes, logits, SIZES, 0.7, 40, 20, 0, False)):
        answers |= {
            f"not finite {image} boxes": each.proposal_boxes.tensor,
            f"not finite {image}": each.objectness_logits,
        }
    try:
        find(boxes, logits, SIZES, 0.7, 40, 20, 0, True)
    except FloatingPointError as error:
        answers["diverged"] = encode_text(type(error).__name__)

    features = {
        f"p{level}": random_tensor(level, 2, 8, *size, dtype=torch.float64)
        for level, size in {2: (16, 21), 3: (8, 11), 4: (4, 6), 5: (2, 3), 6: (1, 2)}.items()
    }
    shapes = {name: engine("layers").ShapeSpec(channels=8, stride=2 ** int(name[1])) for name in features}
    images = engine("structures").ImageList(torch.zeros(2, 3, 64, 84), SIZES)
    for name, keys in {
        "L1": [],
        "smooth": ["SMOOTH_L1_BETA", 0.11, "BATCH_SIZE_PER_IMAGE", 40, "BBOX_REG_LOSS_WEIGHT", 2.0, "LOSS_WEIGHT", 0.5],
        "inside": ["BOUNDARY_THRESH", 0, "CONV_DIMS", [6, -1]],
        "giou": ["BBOX_REG_LOSS_TYPE", "giou"],
        "diou": ["BBOX_REG_LOSS_TYPE", "diou"],
        "ciou": ["BBOX_REG_LOSS_TYPE", "ciou"],
        "few": ["PRE_NMS_TOPK_TRAIN", 9, "PRE_NMS_TOPK_TEST", 5],
    }.items():
        cfg = small_config(engine)
        cfg.MODEL.RPN.merge_from_list(keys)
        cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 4 if name == "few" else 0
        torch.manual_seed(3)
        rpn = engine("modeling").build_proposal_generator(cfg, shapes)
        answers |= add_prefix(name, describe_state(rpn))
        seed_weights(rpn)
        storage, scalars = make_storage(engine)
        with storage, nms_of_doubles():
            proposals, losses = rpn(images, features, make_ground_truth(engine))
        head = {"logits": rpn.rpn_head.objectness_logits.weight, "deltas": rpn.rpn_head.anchor_deltas.weight}
        answers |= add_prefix(name, {**losses, **scalars(), **compute_gradients(sum(losses.values()), head)})
        answers[f"{name} fixed"] = np.array(proposals[0].proposal_boxes.tensor.requires_grad)
        if name == "few":
            with nms_of_doubles():
                tested, _ = rpn.eval()(images, features)
            answers |= {
                "few trained": proposals[0].proposal_boxes.tensor,
                "few tested": tested[0].proposal_boxes.tensor,
            }
        if name == "L1":
            raw = rpn.rpn_head(list(features.values()))
            answers |= {f"raw {index} {level}": each for index in (0, 1) for level, each in enumerate(raw[index])}
            for image, each in enumerate(proposals):
                answers |= {f"proposed {image}": each.proposal_boxes.tensor, f"logits {image}": each.objectness_logits}
            labels, matched = rpn.label_and_sample_anchors(
                rpn.anchor_generator(list(features.values())), make_ground_truth(engine)
            )
            answers |= {"labels": torch.stack(labels), "matched": torch.stack(matched)[:, ::7]}
    return answers


def poolers(engine):
    kit, boxes = engine("modeling.poolers"), engine("structures").Boxes
    lists = [boxes(random_boxes(0, 7, 90)), boxes([]), boxes(random_boxes(1, 5, 700))]
    levels = [
        random_tensor(level, 3, 2, 40 >> level, 56 >> level, dtype=torch.float64).requires_grad_() for level in range(4)
    ]
    pyramid = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    answers = {
        "levels": kit.assign_boxes_to_levels(lists, 2, 5, 224, 4),
        "rois": kit.convert_boxes_to_pooler_format(lists),
    }
    for kind in ("ROIAlign", "ROIAlignV2", "ROIPool"):
        for name, scales, ratio in (("one", pyramid[:1], 0), ("pyramid", pyramid, 2)):
            pooler = kit.ROIPooler(4, scales, ratio, kind, canonical_box_size=56)
            maps = [each.float() if kind == "ROIPool" else each for each in levels[: len(scales)]]
            out = pooler(maps, lists)
            answers |= {
                f"{kind} {name}": out,
                **add_prefix(f"{kind} {name}", compute_gradients(out.square().sum(), {"p2": maps[0]})),
            }
            answers[f"{kind} {name} none"] = pooler([each[:2] for each in maps], [boxes([]), boxes([])])
            answers[f"{kind} {name} no image"] = pooler([each[:0] for each in maps], [])
    return answers


def make_proposals(engine, logits=True):
    """Two images' proposals: some near the ground truth, some anywhere."""
    kit, answers = engine("structures"), []
    for image, (size, truth) in enumerate(zip(SIZES, make_ground_truth(engine), strict=True)):
        near = truth.gt_boxes.tensor.repeat(6, 1) + random_tensor(image, 6 * len(truth), 4) * 3
        boxes = kit.Boxes(torch.cat([near, random_boxes(image + 5, 30, 80)]))
        boxes.clip(size)
        instances = kit.Instances(size, proposal_boxes=boxes[boxes.nonempty()])
        if logits:
            instances.objectness_logits = random_tensor(image + 7, len(instances))
        answers.append(instances)
    return answers


def sampled_regions(engine):
    """Proposals with ground truth among them, labelled and drawn."""
    answers = {}
    for name, keys in {
        "standard": ["BATCH_SIZE_PER_IMAGE", 24],
        "all": ["PROPOSAL_APPEND_GT", False],
        "ignoring": ["IOU_THRESHOLDS", [0.3, 0.6], "IOU_LABELS", [0, -1, 1], "POSITIVE_FRACTION", 0.5],
    }.items():
        cfg = small_config(engine)
        cfg.MODEL.ROI_HEADS.merge_from_list(keys)
        kit = engine("modeling.roi_heads.roi_heads")
        heads = kit.ROIHeads(**kit.ROIHeads.from_config(cfg))
        storage, scalars = make_storage(engine)
        torch.manual_seed(4)
        with storage:
            samples = heads.label_and_sample_proposals(make_proposals(engine), make_ground_truth(engine, "polygons"))
        answers |= add_prefix(name, scalars())
        for image, each in enumerate(samples):
            answers |= {f"{name} {image} boxes": each.proposal_boxes.tensor, f"{name} {image} classes": each.gt_classes}
            answers[f"{name} {image} logits"] = each.objectness_logits
            answers[f"{name} {image} fields"] = encode_text(",".join(sorted(each.get_fields())))
            if each.has("gt_boxes"):
                answers |= {f"{name} {image} truth": each.gt_boxes.tensor, f"{name} {image} area": each.gt_masks.area()}
        objects, masks = kit.select_foreground_proposals(samples, 5)
        answers |= {
            f"{name} objects": objects[0].proposal_boxes.tensor,
            f"{name} are": masks[0],
            f"{name} none": masks[1],
        }
    return answers


def region_predictions(engine):
    """Fast R-CNN: head, losses with gradients, detections."""
    kit, answers = engine("modeling.roi_heads"), {}
    shape = engine("layers").ShapeSpec
    cfg = small_config(engine)
    for name, keys in {
        "linear": [],
        "convs": ["NUM_CONV", 2, "CONV_DIM", 6, "NORM", "BN"],
        "only convs": ["NUM_CONV", 1, "NUM_FC", 0],
    }.items():
        own = cfg.clone()
        own.MODEL.ROI_BOX_HEAD.merge_from_list(keys)
        torch.manual_seed(5)
        head = kit.build_box_head(own, shape(channels=8, height=6, width=6))
        answers |= add_prefix(name, describe_state(head))
        out = head.output_shape
        answers |= {f"{name} shape": np.array([out.channels, out.height or 0, out.width or 0])}
        answers[name] = seed_weights(head)(random_tensor(0, 3, 8, 6, 6, dtype=torch.float64))

    heads = kit.ROIHeads(**kit.ROIHeads.from_config(cfg))
    torch.manual_seed(6)
    with engine("utils.events").EventStorage():
        sample = heads.label_and_sample_proposals(make_proposals(engine), make_ground_truth(engine))
    regions = sum(map(len, sample))
    for name, keys in {
        "specific": [],
        "agnostic": ["CLS_AGNOSTIC_BBOX_REG", True, "SMOOTH_L1_BETA", 0.5, "BBOX_REG_LOSS_WEIGHT", 3.0],
        "giou": ["BBOX_REG_LOSS_TYPE", "giou"],
        "diou": ["BBOX_REG_LOSS_TYPE", "diou"],
        "ciou": ["BBOX_REG_LOSS_TYPE", "ciou"],
    }.items():
        own = cfg.clone()
        own.MODEL.ROI_BOX_HEAD.merge_from_list(keys)
        own.merge_from_list(["TEST.DETECTIONS_PER_IMAGE", 15, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.1])
        torch.manual_seed(7)
        layers = kit.FastRCNNOutputLayers(own, shape(channels=10))
        answers |= add_prefix(name, describe_state(layers))
        seed_weights(layers)
        x = random_tensor(8, regions, 10, dtype=torch.float64).requires_grad_()
        predictions = layers(x)
        storage, scalars = make_storage(engine)
        with storage:
            losses = layers.losses(predictions, sample)
            nothing = layers.losses(layers(x[:0]), [each[:0] for each in sample])
        weights = {"x": x, "scores": layers.cls_score.weight, "deltas": layers.bbox_pred.weight}
        answers |= add_prefix(name, {**losses, **scalars(), **compute_gradients(sum(losses.values()), weights)})
        answers |= add_prefix(f"{name} of nothing", nothing)
        with torch.no_grad(), nms_of_doubles():
            detections, indices = layers.inference(predictions, sample)
            for image, (each, index) in enumerate(zip(detections, indices, strict=True)):
                found = {
                    "boxes": each.pred_boxes.tensor,
                    "scores": each.scores,
                    "classes": each.pred_classes,
                    "of": index,
                }
                answers |= add_prefix(f"{name} {image}", found)
            answers |= {
                f"{name} as true {image}": each
                for image, each in enumerate(layers.predict_boxes_for_gt_classes(predictions, sample))
            }
    find = engine("modeling.roi_heads.fast_rcnn").fast_rcnn_inference
    boxes, scores = random_boxes(3, 30).repeat(1, 2), random_tensor(9, 30, 3).softmax(dim=1)
    boxes[4, 2], scores[7, 1] = float("inf"), float("nan")
    exact = scores[0, 0].item()  # a score on the threshold
    for name, limits in {
        "all": (0.0, 0.9, -1),
        "none": (0.99, 0.5, 10),
        "zero": (0.0, 0.5, 0),
        "at": (exact, 0.9, -1),
    }.items():
        (each,), (index,) = find([boxes], [scores], [(40, 50)], *limits)
        answers |= add_prefix(f"found {name}", {"boxes": each.pred_boxes.tensor, "scores": each.scores, "of": index})
    return answers


def mask_heads(engine):
    answers, kit = {}, engine("structures")
    for name, keys in {"specific": [], "agnostic": ["CLS_AGNOSTIC_MASK", True, "NORM", "GN", "CONV_DIM", 32]}.items():
        cfg = small_config(engine)
        cfg.MODEL.ROI_MASK_HEAD.merge_from_list(keys)
        torch.manual_seed(8)
        head = engine("modeling").build_mask_head(cfg, engine("layers").ShapeSpec(channels=8, height=7, width=7))
        answers |= add_prefix(name, describe_state(head))
        seed_weights(head)
        for masks in ("polygons", "bits"):
            truth = make_ground_truth(engine, masks)
            for each in truth:
                each.proposal_boxes = kit.Boxes(each.gt_boxes.tensor + 1.25)
            x = random_tensor(10, 3, 8, 7, 7, dtype=torch.float64).requires_grad_()
            storage, scalars = make_storage(engine)
            with storage:
                (loss,) = head.train()(x, truth).values()
                empty = head(x[:0], [each[:0] for each in truth])["loss_mask"]
            weights = {"x": x, "predictor": head.predictor.weight, "deconv": head.deconv.weight}
            answers |= add_prefix(
                f"{name} {masks}", {"loss": loss, "empty": empty, **scalars(), **compute_gradients(loss, weights)}
            )
        found = [
            kit.Instances(size, pred_classes=torch.tensor(classes, dtype=torch.int64))
            for size, classes in zip(SIZES, ([4, 0, 1], []), strict=True)
        ]
        head.eval()(random_tensor(11, 3, 8, 7, 7, dtype=torch.float64), found)
        answers |= {f"{name} masks": found[0].pred_masks, f"{name} none": found[1].pred_masks}
    return answers


def outputs(engine):
    """The network's outputs, rescaled to the requested size."""
    kit = engine("structures")
    boxes = torch.tensor([[3.0, 2, 31, 36], [80, 60, 83, 61], [0, 0, 83, 61], [20, 20, 20.5, 20.5]])
    found = kit.Instances((61, 83), pred_boxes=kit.Boxes(boxes.clone()), scores=torch.rand(4))
    found.pred_masks = random_tensor(0, 4, 1, 14, 14).sigmoid()
    proposals = kit.Instances((61, 83), proposal_boxes=kit.Boxes(boxes - 50))
    resize = engine("modeling").detector_postprocess
    masked, proposed = resize(found, 97, 140), resize(proposals, 30, 200)
    return {
        "boxes": masked.pred_boxes.tensor,
        "masks": masked.pred_masks,
        "proposals": proposed.proposal_boxes.tensor,
        "size": np.array(proposed.image_size),
    }


SCENARIOS = (
    *(events, blocks, pyramids, proposal_networks, poolers, sampled_regions, region_predictions),
    *(mask_heads, outputs),
)
