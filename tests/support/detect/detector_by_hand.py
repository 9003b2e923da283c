"""A detector written out: the design's two formulas and a forward, no hook and nothing of ``ssql_det.quant``.

Weights are quantized in a copy, by the formula of the design; activations where the design's tables say so. The
engine's parts between them (choice of proposals, ROIAlign, choice of detections, pasting of masks) are taken as they
are: they compute nothing that is quantized.
"""

import copy

import torch
import torch.nn.functional as F
from support.reference_quantizer import RangeRecorder, quantize_activation, quantize_weight
from torch import nn

from ssql_det import d2

# ---- quantization --------------------------------------------------------------------------------------------------


class Quantizer:
    """What happens to activations at a width: at the places of the scope they are put on the grid of their range."""

    def __init__(self, ends, bits, scope):
        self.ends, self.bits, self.scope = ends, bits, scope

    def __call__(self, place, x, bits=None):
        if self.scope == "backbone" and not place.startswith(("stem", "res")):
            return x
        low, high = self.ends[place]
        if place == "stem":  # the pool hides the zeros of the ReLU
            low = low.clamp(max=0)
        return quantize_activation(x, low, high, bits or self.bits)


def with_weights_on_grid(model, bits, scope):
    """A copy whose weights lie on their grids, with gradients of the model's own: the stem's and, in scope all, the
    predictors' at 8 bits."""
    found = copy.deepcopy(model)
    predictors = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor")
    for path, layer in model.named_modules():
        tensors = dict(layer._parameters)
        pretrained = any(part in path.split(".") for part in ("stem", "res2", "res3", "res4", "res5"))
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and (pretrained or scope == "all"):
            own = 8 if "stem" in path or path.endswith(predictors) else bits
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            tensors["weight"] = quantize_weight(layer.weight, own, axis)
        found.get_submodule(path).__dict__.update(tensors)
    return found


# ---- the forward ---------------------------------------------------------------------------------------------------


def conv(layer, x):
    """Conv and norm, without whatever activation the layer carries."""
    x = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
    norm = layer.norm if hasattr(layer, "norm") else None
    return x if norm is None else batch_norm(norm, x)


def batch_norm(norm, x):
    shape = (1, -1, 1, 1)
    mean, variance = norm.running_mean, norm.running_var
    if norm.training and isinstance(norm, nn.BatchNorm2d):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    centred = (x - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
    return centred * norm.weight.view(shape) + norm.bias.view(shape)


def block(layer, x, act, name):
    out = act(f"{name}.conv2", F.relu(conv(layer.conv1, x)))
    out = conv(layer.conv2, out)
    if hasattr(layer, "conv3"):
        out = conv(layer.conv3, act(f"{name}.conv3", F.relu(out)))
    return act(name, F.relu(out + (x if layer.shortcut is None else conv(layer.shortcut, x))))


def resnet(network, images, act):
    x = F.relu(conv(network.stem.conv1, images))
    x = act("stem", F.max_pool2d(x, kernel_size=3, stride=2, padding=1), bits=8)
    features = {}
    for stage in ("res2", "res3", "res4", "res5"):
        if not hasattr(network, stage):
            break
        for index, each in enumerate(getattr(network, stage)):
            x = block(each, x, act, f"{stage}.{index}")
        features[stage] = x
    return features


def pyramid(network, images, act):
    features = resnet(network.bottom_up, images, act)
    found, above = {}, None
    for level in (5, 4, 3, 2):
        own = conv(getattr(network, f"fpn_lateral{level}"), features[f"res{level}"])
        above = own if above is None else own + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
        found[f"p{level}"] = conv(getattr(network, f"fpn_output{level}"), act(f"fpn_output{level}", above))
    found["p6"] = found["p5"][:, :, ::2, ::2]
    return dict(sorted(found.items()))


def rpn_outputs(generator, features, act):
    head, is_fpn = generator.rpn_head, len(features) > 1
    logits, deltas = [], []
    for x in features:
        x = act("rpn.conv", x) if is_fpn else x
        x = F.relu(conv(head.conv, x))
        logits.append(conv(head.objectness_logits, act("rpn.logits", x, bits=8)))
        deltas.append(conv(head.anchor_deltas, act("rpn.deltas", x, bits=8)))
    return logits, deltas


def by_anchor(logits, deltas):
    deltas = [
        each.view(len(each), -1, 4, *each.shape[2:]).permute(0, 3, 4, 1, 2).reshape(len(each), -1, 4) for each in deltas
    ]
    return [each.permute(0, 2, 3, 1).flatten(1) for each in logits], deltas


def proposals(generator, images, features, act, seen):
    outputs = seen["rpn logits"], seen["rpn deltas"] = rpn_outputs(generator, features, act)
    return generator.predict_proposals(generator.anchor_generator(features), *by_anchor(*outputs), images.image_sizes)


def predicted(predictor, x, act, seen):
    scores = F.linear(act("cls_score", x, bits=8), predictor.cls_score.weight, predictor.cls_score.bias)
    boxes = F.linear(act("bbox_pred", x, bits=8), predictor.bbox_pred.weight, predictor.bbox_pred.bias)
    seen["scores"], seen["boxes"] = scores, boxes
    return scores, boxes


def mask_logits(head, x, act, is_on_grid):
    convs = [name for name, _ in head.named_children() if name.startswith("mask_fcn")]
    for name in convs:
        x = F.relu(conv(getattr(head, name), act(name, x)))
    x = x if is_on_grid else act("deconv", x)
    x = F.relu(F.conv_transpose2d(x, head.deconv.weight, head.deconv.bias, stride=2))
    return conv(head.predictor, act("mask predictor", x, bits=8))


def masks(head, x, detections, act, seen, is_on_grid):
    seen["masks"] = mask_logits(head, x, act, is_on_grid)
    of_all = iter(seen["masks"])
    for each in detections:
        logits = [next(of_all)[index] for index in each.pred_classes.tolist()]
        side = seen["masks"].shape[2:]
        each.pred_masks = torch.stack(logits)[:, None].sigmoid() if logits else seen["masks"].new_zeros(0, 1, *side)
    return detections


def res5(heads, features, boxes, act):
    x = act("res5.input", heads.pooler([features["res4"]], boxes))
    for name, each in heads.res5.named_children():
        x = batch_norm(each, x) if name == "norm" else block(each, x, act, f"res5.{name}")
    return x


def c4_heads(heads, features, proposed, act, seen):
    x = res5(heads, features, [each.proposal_boxes for each in proposed], act).mean((2, 3))
    detections, _ = heads.box_predictor.inference(predicted(heads.box_predictor, x, act, seen), proposed)
    if hasattr(heads, "mask_head"):
        x = res5(heads, features, [each.pred_boxes for each in detections], act)
        detections = masks(heads.mask_head, x, detections, act, seen, is_on_grid=not hasattr(heads.res5, "norm"))
    return detections


def fpn_regions(heads, maps, boxes, act):
    x = heads.box_pooler(maps, boxes).flatten(1)
    for name in ("fc1", "fc2"):
        layer = getattr(heads.box_head, name)
        x = F.relu(F.linear(act(name, x), layer.weight, layer.bias))
    return x


def fpn_heads(heads, features, proposed, act, seen):
    maps = [features[name] for name in ("p2", "p3", "p4", "p5")]
    x = fpn_regions(heads, maps, [each.proposal_boxes for each in proposed], act)
    detections, _ = heads.box_predictor.inference(predicted(heads.box_predictor, x, act, seen), proposed)
    if hasattr(heads, "mask_head"):
        x = heads.mask_pooler(maps, [each.pred_boxes for each in detections])
        detections = masks(heads.mask_head, x, detections, act, seen, is_on_grid=False)
    return detections


def features_by_hand(model, batch, act):
    """The images, the features by name, and those that the RPN reads."""
    images = d2.ImageList.from_tensors(
        [(each["image"] - model.pixel_mean) / model.pixel_std for each in batch], model.backbone.size_divisibility
    )
    is_fpn = hasattr(model.backbone, "bottom_up")
    features = (pyramid if is_fpn else resnet)(model.backbone, images.tensor, act)
    return images, features, list(features.values()) if is_fpn else [features["res4"]]


@torch.no_grad()
def by_hand(model, batch, act):
    """What the detector puts out, and what passes on the way."""
    seen = {}
    images, features, seen["features"] = features_by_hand(model, batch, act)
    proposed = proposals(model.proposal_generator, images, seen["features"], act, seen)
    detections = (fpn_heads if "p2" in features else c4_heads)(model.roi_heads, features, proposed, act, seen)
    answers = [
        d2.detector_postprocess(each, asked["height"], asked["width"])
        for each, asked in zip(detections, batch, strict=True)
    ]
    return answers, seen


# ---- training ------------------------------------------------------------------------------------------------------


def losses_by_hand(model, batch, act, samples=None):
    """The losses of a training pass, and what it sampled, unless that is given: labelled anchors and regions."""
    images, features, maps = features_by_hand(model, batch, act)
    generator, heads = model.proposal_generator, model.roi_heads
    anchors, (logits, deltas) = generator.anchor_generator(maps), by_anchor(*rpn_outputs(generator, maps, act))
    if samples is None:
        truth = [each["instances"] for each in batch]
        labelled = generator.label_and_sample_anchors(anchors, truth)
        proposed = generator.predict_proposals(anchors, logits, deltas, images.image_sizes)
        samples = labelled, heads.label_and_sample_proposals(proposed, truth)
    (labels, boxes), regions = samples
    losses = generator.losses(anchors, logits, labels, deltas, boxes)
    sampled = [each.proposal_boxes for each in regions]
    if "p2" in features:
        maps = maps[:-1]
        x = fpn_regions(heads, maps, sampled, act)
    else:
        x = res5(heads, features, sampled, act).mean((2, 3))
    losses |= heads.box_predictor.losses(predicted(heads.box_predictor, x, act, {}), regions)
    if hasattr(heads, "mask_head"):
        objects = [each[each.gt_classes < heads.num_classes] for each in regions]
        x = heads.mask_pooler(maps, [each.proposal_boxes for each in objects])
        logits = mask_logits(heads.mask_head, x, act, is_on_grid=False)
        classes = torch.cat([each.gt_classes for each in objects])
        truth = [each.gt_masks.crop_and_resize(each.proposal_boxes.tensor, logits.shape[2]) for each in objects]
        losses["loss_mask"] = F.binary_cross_entropy_with_logits(
            logits[torch.arange(len(logits)), classes], torch.cat(truth).float()
        )
    return losses, samples


def any_precision_step_by_hand(model, batch, bits):
    """Add the gradients of a step to those of the model; returns the losses of its float and its quantized pass."""
    recorder = RangeRecorder()
    losses, samples = losses_by_hand(model, batch, recorder)
    quantizer = Quantizer(recorder.ranges, bits.act, "all")
    quantized_losses, _ = losses_by_hand(with_weights_on_grid(model, bits.weight, "all"), batch, quantizer, samples)
    ((sum(losses.values()) + sum(quantized_losses.values())) / 2).backward()
    return [{name: loss.detach() for name, loss in each.items()} for each in (losses, quantized_losses)]
