"""Scenarios of structures, layers and the mathematics of proposals, which run in both engines; see
``record_answers.py``."""

import numpy as np
import torch
import torch.nn.functional as F


def random_tensor(seed, *shape, dtype=torch.float32):
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape)).to(dtype)


def random_boxes(seed, count, size=60.0):
    """Overlapping boxes, some empty, some on a border, some outside of an image of height 40 and width 50."""
    corners = np.random.RandomState(seed).rand(count, 4) * size - 5
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + (corners[:, 2:] + 5) * 0.6], axis=1)
    boxes[0] = [3, 4, 3, 9]
    boxes[1] = [0, 0, 50, 40]
    return torch.from_numpy(boxes).float()


def boxes(engine):
    kit = engine("structures")
    first, second = kit.Boxes(random_boxes(0, 12)), kit.Boxes(random_boxes(1, 9))
    clipped = first.clone()
    clipped.clip((40, 50))
    scaled = second.clone()
    scaled.scale(0.5, 3.0)
    mode = kit.BoxMode
    points = random_tensor(2, 5, 2) * 20
    return {
        "area": first.area(),
        "iou": kit.pairwise_iou(first, second),
        "ioa": kit.pairwise_ioa(first, second),
        "matched iou": engine("structures.boxes").matched_pairwise_iou(first[:9], second),
        "distance": kit.pairwise_point_box_distance(points, first),
        "clipped": clipped.tensor,
        "scaled": scaled.tensor,
        "nonempty": first.nonempty(),
        "nonempty above 3": first.nonempty(threshold=3.0),
        "inside": first.inside_box((40, 50), boundary_threshold=2),
        "centres": first.get_centers(),
        "one": first[3].tensor,
        "last": first[-1].tensor,
        "slice": first[2:5].tensor,
        "chosen": first[first.nonempty()].tensor,
        "cat": kit.Boxes.cat([first, second]).tensor,
        "cat of none": kit.Boxes.cat([]).tensor,
        "from a list": kit.Boxes([[1, 2, 3, 4]]).tensor,
        "from nothing": kit.Boxes([]).tensor,
        "from double": kit.Boxes(random_boxes(3, 2).double()).tensor,
        "xywh": mode.convert(first.tensor, mode.XYXY_ABS, mode.XYWH_ABS),
        "xyxy of array": mode.convert(first.tensor.numpy(), mode.XYWH_ABS, mode.XYXY_ABS),
        "xyxy of tuple": np.array(mode.convert((1, 2, 3, 4), mode.XYWH_ABS, mode.XYXY_ABS)),
        "xywh of list": np.array(mode.convert([1.5, 2.0, 3.0, 4.25], mode.XYXY_ABS, mode.XYWH_ABS)),
        "modes": np.array([each.value for each in mode]),
    }


def instances(engine):
    kit = engine("structures")
    one = kit.Instances((40, 50), scores=random_tensor(0, 6), gt_boxes=kit.Boxes(random_boxes(1, 6)))
    one.classes = torch.arange(6)
    chosen = one[one.scores > 0]
    last = one[-1]
    both = kit.Instances.cat([one, chosen, one[2:3]])
    named = kit.Instances((40, 50), names=list("abcdef"))
    return {
        "lengths": np.array([len(one), len(chosen), len(last), len(both)]),
        "chosen scores": chosen.scores,
        "last box": last.gt_boxes.tensor,
        "cat boxes": both.gt_boxes.tensor,
        "cat classes": both.classes,
        "cat names": np.array([ord(name) for name in kit.Instances.cat([named, named[2:4]]).names]),
        "fields": np.array([one.has("scores"), one.has("masks"), "classes" in one.get_fields()]),
        "size": np.array(both.image_size),
        "moved": one.to("cpu").scores,
    }


def image_lists(engine):
    kit = engine("structures")
    images = [random_tensor(seed, 3, *size) for seed, size in enumerate([(9, 17), (12, 5), (1, 33)])]
    make = kit.ImageList.from_tensors
    square = {"size_divisibility": 16, "square_size": 40}
    lists = {
        "plain": make(images),
        "divisible": make(images, size_divisibility=16, pad_value=-2.5),
        "one": make(images[:1], size_divisibility=32),
        "one as it is": make(images[:1]),
        "square": make(images, padding_constraints=square),
        "flat": make([image[0] for image in images], size_divisibility=8),
    }
    answers = {name: each.tensor for name, each in lists.items()}
    answers |= {f"{name} sizes": np.array([tuple(size) for size in each.image_sizes]) for name, each in lists.items()}
    sources = [image.clone().requires_grad_() for image in images]
    make(sources).tensor.square().sum().backward()
    answers |= {f"gradient {index}": image.grad for index, image in enumerate(sources)}
    return answers | {"second": lists["divisible"][1], "length": np.array(len(lists["plain"]))}


POLYGONS = [
    [[3.5, 2.0, 30.25, 4.5, 22.0, 35.5, 5.0, 30.0]],
    [[10, 10, 20, 10, 20, 20, 10, 20], [25.5, 25.5, 39.0, 26.0, 30.0, 38.0]],
    [[-5, -4, 60, -4, 60, 20.5, -5, 20.5]],
    [[1, 1, 2, 1, 2, 2]],
]


def masks(engine):
    kit = engine("structures")
    polygons = kit.PolygonMasks([[np.array(each, float) for each in instance] for instance in POLYGONS])
    bits = kit.BitMasks.from_polygon_masks(polygons, 40, 50)
    targets = torch.tensor([[3.0, 2, 31, 36], [8.5, 9.25, 40, 39], [0, 0, 50, 20], [1, 1, 1.02, 2]])
    hollow = kit.BitMasks(torch.cat([bits.tensor, torch.zeros(1, 40, 50, dtype=torch.bool)]))
    roi = kit.ROIMasks(random_tensor(0, 4, 14, 14).sigmoid())
    chosen = torch.tensor([True, False, True, False])
    return {
        "bits": bits.tensor,
        "no polygon": kit.polygons_to_bitmask([], 5, 6),
        "polygon targets": polygons.crop_and_resize(targets, 28),
        "bit targets": bits.crop_and_resize(targets, 28),
        "polygon boxes": polygons.get_bounding_boxes().tensor,
        "bit boxes": hollow.get_bounding_boxes().tensor,
        "polygon area": polygons.area(),
        "nonempty": hollow.nonempty(),
        "polygon nonempty": polygons.nonempty(),
        "chosen polygons": kit.BitMasks.from_polygon_masks(polygons[chosen], 40, 50).tensor,
        "listed polygons": kit.BitMasks.from_polygon_masks(polygons[torch.tensor([3, 0])], 40, 50).tensor,
        "cat": kit.BitMasks.cat([bits, bits[1], bits[chosen]]).tensor,
        "cat polygons": kit.PolygonMasks.cat([polygons, polygons[2:]]).area(),
        "no targets": polygons[torch.zeros(4, dtype=torch.bool)].crop_and_resize(targets[:0], 28),
        "pasted rois": roi.to_bitmasks(kit.Boxes(targets), 40, 50).tensor,
    }


def norms(engine):
    kit = engine("layers")
    answers = {}
    for name in ("BN", "FrozenBN", "GN", "LN", "naiveSyncBN", "naiveSyncBN_N"):
        layer = kit.get_norm(name, 32).double()
        for index, value in enumerate(layer.state_dict().values()):
            if value.dtype.is_floating_point:
                value.copy_(random_tensor(index, 32, dtype=torch.float64).abs() + 0.5)
        for training in (True, False):
            x = random_tensor(9, 2, 32, 3, 2, dtype=torch.float64).requires_grad_()
            out = layer.train(training)(x)
            out.backward(random_tensor(10, *out.shape, dtype=torch.float64))
            answers |= {f"{name} {training}": out.detach(), f"{name} {training} gradient": x.grad}
        answers[f"{name} without gradient"] = layer(random_tensor(9, 2, 32, 3, 2, dtype=torch.float64))
        answers |= {f"{name} {key}": value for key, value in layer.state_dict().items()}
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4, eps=1e-3))
    block[1].running_mean.copy_(random_tensor(0, 4))
    frozen = kit.FrozenBatchNorm2d.convert_frozen_batchnorm(block)
    answers["converted"] = frozen[1](random_tensor(1, 2, 4, 3, 3))
    answers["converted eps"] = np.array(frozen[1].eps)
    old = kit.FrozenBatchNorm2d(4)
    old.load_state_dict({"weight": random_tensor(2, 4), "bias": random_tensor(3, 4)})  # Caffe2's two
    answers["Caffe2"] = old(random_tensor(1, 2, 4, 3, 3))
    return answers


def convs(engine):
    kit = engine("layers")
    conv = kit.Conv2d(3, 8, 3, stride=2, padding=1, bias=False, norm=kit.get_norm("BN", 8), activation=F.relu_).double()
    for index, parameter in enumerate(conv.parameters()):
        parameter.data.copy_(random_tensor(index, *parameter.shape, dtype=torch.float64))
    x = random_tensor(5, 2, 3, 11, 12, dtype=torch.float64)
    out = conv(x)
    out.sum().backward()
    logits, target = random_tensor(6, 7, 5).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    return {
        "conv": out.detach(),
        "gradient": conv.weight.grad,
        "empty": conv.eval()(x[:0]).detach(),
        "keys": np.array([ord(letter) for letter in ",".join(conv.state_dict())]),
        "cross entropy": kit.cross_entropy(logits, target).detach(),
        "of nothing": kit.cross_entropy(logits[:0], target[:0]).detach(),
        "of each": kit.cross_entropy(logits, target, reduction="none").detach(),
        "nonzero": torch.stack(kit.nonzero_tuple(random_tensor(7, 4, 5) > 0)),
        "nonzero of a scalar": torch.stack(kit.nonzero_tuple(torch.tensor(True))),
        "cat": kit.cat([random_tensor(8, 2, 3), random_tensor(9, 4, 3)]),
    }


def regions(engine):
    kit = engine("layers")
    features = random_tensor(0, 2, 2, 14, 18, dtype=torch.float64).requires_grad_()
    rois = torch.cat([torch.tensor([[0.0], [1], [0], [1], [1]]), random_boxes(1, 5)], dim=1)
    answers = {}
    for ratio, aligned in ((0, True), (2, True), (0, False)):
        align = kit.ROIAlign((7, 5), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
        out = align(features, rois)
        (gradient,) = torch.autograd.grad(out.sum(), features)
        answers |= {f"align {ratio} {aligned}": out.detach(), f"align {ratio} {aligned} gradient": gradient}
    boxes, scores, levels = random_boxes(2, 60), random_tensor(3, 60).sigmoid(), torch.arange(60) % 3
    answers["nms"] = kit.batched_nms(boxes, scores, levels, 0.3)
    answers["nms of nothing"] = kit.batched_nms(boxes[:0], scores[:0], levels[:0], 0.3)
    soft = random_tensor(4, 5, 28, 28).sigmoid()
    places = torch.tensor([[3.2, 4.1, 30, 22], [0, 0, 50, 40], [40.5, 31, 50, 40], [7, 7, 7.5, 8], [0, 10, 12, 10.25]])
    answers["paste"] = kit.paste_masks_in_image(soft, places, (40, 50))
    answers["paste high"] = kit.paste_masks_in_image(soft, places, (40, 50), threshold=0.7)
    answers["paste soft"] = kit.paste_masks_in_image(soft, places, (40, 50), threshold=-1)
    answers["paste nothing"] = kit.paste_masks_in_image(soft[:0], places[:0], (40, 50))
    return answers


def proposals(engine):
    """Anchors, matches, samples and deltas."""
    kit = engine("modeling")
    shapes = [engine("layers").ShapeSpec(stride=stride) for stride in (4, 8)]
    features = [random_tensor(0, 1, 2, 5, 7), random_tensor(0, 1, 2, 3, 4)]
    cfg = engine("config").get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 50.5], [64]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.25
    anchors = kit.build_anchor_generator(cfg, shapes)
    shared = kit.anchor_generator.DefaultAnchorGenerator(sizes=[8, 16], aspect_ratios=[[1.0]], strides=[4, 8])
    answers = {f"anchors {level}": each.tensor for level, each in enumerate(anchors(features))}
    answers |= {f"shared {level}": each.tensor for level, each in enumerate(shared(features))}
    answers |= {"count": np.array(anchors.num_anchors), "saved": np.array(len(anchors.state_dict()))}

    quality = random_tensor(1, 6, 80).abs() * 0.4
    quality[2] = 0.11  # a ground truth whose best is a tie, and poor
    for low in (False, True):
        matcher = engine("modeling.matcher").Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=low)
        for name, each in {"": quality, " of none": quality[:0], " without any": quality[:, :0]}.items():
            matches, labels = matcher(each)
            answers |= {f"matches{name} {low}": matches, f"labels{name} {low}": labels}

    labels = torch.from_numpy(np.random.RandomState(2).randint(-1, 4, 300))
    for count, fraction in ((64, 0.25), (512, 0.5), (10, 0.0)):
        torch.manual_seed(3)
        positive, negative = engine("modeling.sampling").subsample_labels(labels, count, fraction, 3)
        answers |= {f"positive {count}": positive, f"negative {count}": negative}

    transform = engine("modeling.box_regression").Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    sources, targets = random_boxes(4, 20)[1:] + torch.tensor([0, 0, 1.0, 1]), random_boxes(5, 20)[1:]
    answers["deltas"] = transform.get_deltas(sources, targets + torch.tensor([0, 0, 1.0, 1]))
    answers["moved"] = transform.apply_deltas(random_tensor(6, 19, 12) * 9, sources)
    answers["moved in half"] = transform.apply_deltas(random_tensor(6, 19, 4).half(), sources.half())
    answers["moved none"] = transform.apply_deltas(random_tensor(6, 0, 8), sources[:0])
    return answers


SCENARIOS = (boxes, instances, image_lists, masks, norms, convs, regions, proposals)
