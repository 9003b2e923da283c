"""Files of weights as their users have them, made here: of real classes, or renamed from torchvision's, rule by rule.

Every file has the same backbone, ``backbone(arch)``, and as its moving average ``backbone(arch, 1)``. Nothing of
``ssql_det.convert`` is used, so that both cannot be wrong together.
"""

import argparse
import collections
import functools
import itertools
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass

import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from ssql_det import d2

ARCHS = ("resnet18", "resnet34", "resnet50")

# ---------------------------------------------------------------- tensors


def filters(shape, numbers):
    """Random, and all of them windows on one short vector: of a file of them only that vector is saved."""
    strides = (11, 7, 3, 1)[: len(shape)]
    length = 1 + sum(stride * (size - 1) for stride, size in zip(strides, shape, strict=True))
    fan_in = torch.Size(shape[1:]).numel()
    return (torch.randn(length, generator=numbers) * (2 / fan_in) ** 0.5).as_strided(shape, strides)


def random(name, shape, numbers):
    if name.endswith("num_batches_tracked"):
        return torch.randint(1, 10**6, shape, generator=numbers)
    if len(shape) > 1:
        return filters(shape, numbers)
    noise = torch.randn(shape, generator=numbers)
    if name.endswith("running_var"):
        return 1 + 0.3 * noise.abs()
    return 0.1 * noise + (0.5 if name.endswith("weight") else 0)


@functools.cache
def network(arch, seed=0):
    """The state dict of torchvision's class."""
    with torch.device("meta"):
        state = torchvision.models.get_model(arch, weights=None).state_dict()
    numbers = torch.Generator().manual_seed(seed)
    return {name: random(name, value.shape, numbers) for name, value in state.items()}


def backbone(arch, seed=0):
    return {name: value for name, value in network(arch, seed).items() if not name.startswith("fc.")}


def uncounted(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def affine(state):
    """Norms without statistics, as FrozenBN stands for them."""
    plain = uncounted(state)
    plain |= {name: torch.zeros(value.shape) for name, value in state.items() if name.endswith("running_mean")}
    return plain | {
        name: torch.ones(value.shape) - 1e-5 for name, value in state.items() if name.endswith("running_var")
    }


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def renamed(state, *rules):
    """Each name by the first rule that fits its beginning."""

    def new(name):
        for pattern, to in rules:
            if re.match(pattern, name):
                return re.sub(f"^{pattern}", to, name, count=1)
        raise AssertionError(name)

    result = {new(name): value for name, value in state.items()}
    assert len(result) == len(state)
    return result


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


# ---------------------------------------------------------------- other names of a ResNet's parts


def detectron2_names(state):
    return renamed(
        state,
        (r"conv1\.", "stem.conv1."),
        (r"bn1\.", "stem.conv1.norm."),
        *((rf"layer{stage}\.(\d+)\.conv", rf"res{stage + 1}.\1.conv") for stage in (1, 2, 3, 4)),
        *((rf"layer{stage}\.(\d+)\.bn(\d)", rf"res{stage + 1}.\1.conv\2.norm") for stage in (1, 2, 3, 4)),
        *((rf"layer{stage}\.(\d+)\.downsample\.0", rf"res{stage + 1}.\1.shortcut") for stage in (1, 2, 3, 4)),
        *((rf"layer{stage}\.(\d+)\.downsample\.1", rf"res{stage + 1}.\1.shortcut.norm") for stage in (1, 2, 3, 4)),
    )


def caffe2_names(state, norm_leaves):
    """``norm_leaves`` has the new ends; a norm's tensor with none of them is not there."""
    blobs = {}
    for name, value in state.items():
        *parts, leaf = name.split(".")
        is_norm = parts[-1].startswith("bn") or (parts[-2:-1] == ["downsample"] and parts[-1] == "1")
        if parts in (["conv1"], ["bn1"]):
            blob = "res_conv1_bn" if is_norm else "conv1"
        else:
            blob = f"res{int(parts[0][-1]) + 1}_{parts[1]}_"
            blob += "branch1" if parts[2] == "downsample" else "branch2" + "-abc"[int(parts[2][-1])]
            blob += "_bn" if is_norm else ""
        if not is_norm:
            blobs[f"{blob}_w"] = value
        elif leaf in norm_leaves:
            blobs[f"{blob}_{norm_leaves[leaf]}"] = value
    return blobs


NORMALIZED = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
AFFINE = {"weight": "s", "bias": "b"}


def hugging_face_names(state):
    stages = []
    for stage in (1, 2, 3, 4):
        there = rf"encoder.stages.{stage - 1}.layers.\1"
        for conv in (1, 2, 3):
            stages += [(rf"layer{stage}\.(\d+)\.conv{conv}", f"{there}.layer.{conv - 1}.convolution")]
            stages += [(rf"layer{stage}\.(\d+)\.bn{conv}", f"{there}.layer.{conv - 1}.normalization")]
        stages += [(rf"layer{stage}\.(\d+)\.downsample\.0", f"{there}.shortcut.convolution")]
        stages += [(rf"layer{stage}\.(\d+)\.downsample\.1", f"{there}.shortcut.normalization")]
    stem = [("conv1", "embedder.embedder.convolution"), ("bn1", "embedder.embedder.normalization")]
    return renamed(state, *stem, *stages)


def numbered(arch, seed=0):
    """As parts of ``nn.Sequential(*children)``."""
    with torch.device("meta"):
        model = torchvision.models.get_model(arch, weights=None)
    model.load_state_dict(network(arch, seed), assign=True)
    return nn.Sequential(*list(model.children())[:-1]).state_dict()


def with_quantizers(state):
    """The published SSQL code's convs: each with its norm, its weights once more, and the range it observed."""
    named = renamed(
        state,
        (r"bn1", "conv1.bn_function"),
        (r"(layer\d\.\d+)\.bn(\d)", r"\1.conv\2.bn_function"),
        (r"(layer\d\.\d+)\.downsample\.0", r"\1.downsample"),
        (r"(layer\d\.\d+)\.downsample\.1", r"\1.downsample.bn_function"),
        (r"", ""),
    )
    numbers = torch.Generator().manual_seed(5)
    convs = {name: value for name, value in named.items() if value.dim() == 4}
    quantizers = {}
    for name, value in convs.items():
        quantizer = name.removesuffix(".weight") + ".weight_quantizer"
        low, high = value.amin((1, 2, 3)), value.amax((1, 2, 3))
        quantizers |= {f"{quantizer}.weight": filters(value.shape, numbers)}
        quantizers |= {f"{quantizer}.observer.min_val": low, f"{quantizer}.observer.max_val": high}
    return named, quantizers


# ---------------------------------------------------------------- heads


def mlp(*widths, norm=True, bias=False):
    """The state dict of Linear, norm, ReLU, ..., Linear."""
    layers = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1])).state_dict()


def classifier():
    return nn.Linear(8, 10).state_dict()


def training(arch, state, **more):
    """What main_moco.py and its many descendants save."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    return {"epoch": 100, "arch": arch, "state_dict": state, "optimizer": optimizer.state_dict(), **more}


def lightning(state, **more):
    return {
        "epoch": 99,
        "global_step": 1000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        **more,
    }


# ---------------------------------------------------------------- detectors


def config(arch, kind, *overrides):
    """A small-headed detector over a ResNet of full size, through the door to the engine."""
    depth = int(arch.removeprefix("resnet"))
    lines = {
        "MODEL.DEVICE": "cpu",
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "MODEL.RPN.CONV_DIMS": [8],
        "MODEL.ROI_HEADS.NUM_CLASSES": 5,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    }
    if kind == "FPN":
        stages = ["res2", "res3", "res4", "res5"]
        lines |= {
            "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
            "MODEL.RESNETS.OUT_FEATURES": stages,
            "MODEL.FPN.IN_FEATURES": stages,
            "MODEL.FPN.OUT_CHANNELS": 16,
            "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
            "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        }
    pairs = [str(each) for line in lines.items() for each in line]
    return d2.read_config(overrides=[*pairs, *map(str, overrides)])


def detector(arch, kind, *overrides):
    """The engine's own; over a ResNet-18 or 34 a C4 head has that network's last stage, as SSQL's has."""
    cfg = config(arch, kind, *overrides)
    model = d2.build_model(cfg)
    if kind == "C4" and arch != "resnet50":
        stages = d2.ResNet.make_default_stages(cfg.MODEL.RESNETS.DEPTH, norm=cfg.MODEL.RESNETS.NORM)
        model.roi_heads.res5 = nn.Sequential(*stages[3])
    return model


def in_detector(kind, state):
    """Detectron2's names of a ResNet, where a detector keeps its parts."""
    if kind == "FPN":
        return under("backbone.bottom_up.", state)
    return {("roi_heads." if name.startswith("res5.") else "backbone.") + name: each for name, each in state.items()}


@functools.cache
def detector_states(arch, kind):
    """Of a detector with frozen norms: its backbone, and its other parts."""
    state = detector(arch, kind).state_dict()
    resnet = in_detector(kind, detectron2_names(uncounted(backbone(arch))))
    assert {name: value.shape for name, value in resnet.items() if name in state} == {
        name: value.shape for name, value in resnet.items()
    }
    numbers = torch.Generator().manual_seed(7)
    parts = {name: random(name, value.shape, numbers) for name, value in state.items() if name not in resnet}
    assert not [name for name in parts if "norm" in name]
    return resnet, parts


def old_detector_extras():
    anchors = {f"proposal_generator.anchor_generator.cell_anchors.{level}": torch.randn(3, 4) for level in range(5)}
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    return {**anchors, "pixel_mean": mean, "pixel_std": torch.ones(3, 1, 1)}


def zoo(state):
    """As the model zoo's detectors are published, an OrderedDict with its metadata and all."""
    model = collections.OrderedDict(arrays(state))
    model._metadata = collections.OrderedDict({"": {"version": 1}})
    return {"model": model, "__author__": "Detectron2 Model Zoo"}


def detectron1_parts(arch, parts):
    """Blobs of the parts of a detector; the background comes first and has boxes and a mask of its own."""
    last = [depth - 1 for depth in ((2, 2, 2, 2) if arch == "resnet18" else (3, 4, 6, 3))]
    is_fpn = "backbone.fpn_output2.weight" in parts
    level = "_fpn2" if is_fpn else ""
    names = {
        "proposal_generator.rpn_head.conv": f"conv_rpn{level}",
        "proposal_generator.rpn_head.objectness_logits": f"rpn_cls_logits{level}",
        "proposal_generator.rpn_head.anchor_deltas": f"rpn_bbox_pred{level}",
        "roi_heads.box_head.fc1": "fc6",
        "roi_heads.box_head.fc2": "fc7",
        "roi_heads.box_predictor.cls_score": "cls_score",
        "roi_heads.box_predictor.bbox_pred": "bbox_pred",
        "roi_heads.mask_head.deconv": "conv5_mask",
        "roi_heads.mask_head.predictor": "mask_fcn_logits",
        **{f"roi_heads.mask_head.mask_fcn{index}": f"_[mask]_fcn{index}" for index in (1, 2, 3, 4)},
    }
    for stage, block in zip((2, 3, 4, 5), last, strict=True):
        lateral = "_lateral" if stage < 5 else ""  # the topmost has nothing above it to be added to
        names[f"backbone.fpn_lateral{stage}"] = f"fpn_inner_res{stage}_{block}_sum{lateral}"
        names[f"backbone.fpn_output{stage}"] = f"fpn_res{stage}_{block}_sum"
    blobs = {}
    for name, value in parts.items():
        module, leaf = name.rsplit(".", 1)
        if module.endswith("cls_score"):
            value = torch.cat([value[-1:], value[:-1]])
        elif module.endswith("bbox_pred"):
            value = torch.cat([value[:4] - 5, value])
        elif module.endswith("predictor"):
            value = torch.cat([value[:1] - 5, value])
        blobs[f"{names[module]}_{leaf[0]}"] = value
    return blobs


# ---------------------------------------------------------------- sources


@dataclass(frozen=True)
class Source:
    """A kind of file. ``make(arch)`` gives its content, and the names beside the backbone that is read by default.

    ``tensors`` makes the backbone's that the file can have of torchvision's; ``kind`` is a detector's.
    """

    format: str
    make: Callable
    save: Callable = torch.save
    suffix: str = ".pth"
    tensors: Callable = dict
    branches: tuple = ("online",)
    channels: str | None = "RGB"
    stride_in_1x1: bool | None = False
    kind: str | None = None
    method: str | None = None
    images: tuple | None = None  # mean and std, where they are not those of nearly all with such channels

    def means_and_stds(self):
        usual = {
            "RGB": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
            "BGR": ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
            None: None,
        }
        return self.images or usual[self.channels]


SOURCES = {}
BOTH = ("online", "momentum")
MSRA = {"channels": "BGR", "stride_in_1x1": True}
ZERO_TO_ONE = {"images": ((0, 0, 0), (255, 255, 255))}
SWAV = {"images": ((123.675, 116.28, 103.53), (58.14, 57.12, 57.375))}  # .228 of 255, where others have .229
DETECTRON = {"images": ((102.9801, 115.9465, 122.7717), (1, 1, 1))}
UNKNOWN = {"channels": None, "stride_in_1x1": None}


def source(name, format, **facts):
    def register(make):
        SOURCES[name] = Source(format, make, **facts)
        return make

    return register


def pickled(protocol):
    return lambda content, file: pickle.dump(content, file, protocol)


def as_safetensors(content, file):
    state = {name: value.contiguous() for name, value in content.items()}
    file.write(safetensors.torch.save(state, {"format": "pt"}))


PKL = {"save": pickled(4), "suffix": ".pkl"}
SAFETENSORS = {"save": as_safetensors, "suffix": ".safetensors"}
TAR = {"suffix": ".pth.tar"}


def pair(arch, online, momentum):
    return under(online, backbone(arch)), under(momentum, backbone(arch, 1))


# ---- torchvision's names


@source("torchvision", "torchvision")
def _(arch):
    return collections.OrderedDict(network(arch)), {"fc.weight", "fc.bias"}


@source("torchvision, DDP", "torchvision")
def _(arch):
    return under("module.", network(arch)), {"fc.weight", "fc.bias"}


@source("torchvision, compiled, DDP", "torchvision")
def _(arch):
    return {"model": under("module._orig_mod.", network(arch))}, {"fc.weight", "fc.bias"}


@source("torchvision, trained further", "torchvision", **TAR)
def _(arch):
    """Also MoCo's linear classification."""
    return training(arch, under("module.", network(arch)), best_acc1=torch.tensor(76.1)), {"fc.weight", "fc.bias"}


@source("torchvision, before norms counted", "torchvision", tensors=uncounted)
def _(arch):
    return uncounted(network(arch)), {"fc.weight", "fc.bias"}


@source(
    "torchvision, old container",
    "torchvision",
    save=functools.partial(torch.save, _use_new_zipfile_serialization=False),
)
def _(arch):
    return network(arch), {"fc.weight", "fc.bias"}


@source("no classifier", "torchvision")
def _(arch):
    """DINO's, Barlow Twins' and VICReg's published backbones."""
    return backbone(arch), set()


def timm_network(arch):
    with torch.device("meta"):
        model = timm.create_model(arch)
    model.load_state_dict(network(arch), assign=True)
    return model.state_dict(), {"fc.weight", "fc.bias"}


source("timm .bin", "torchvision", suffix=".bin")(timm_network)  # it has torchvision's names and conventions
source("timm .safetensors", "safetensors", **SAFETENSORS)(timm_network)

# ---- the published SSQL code


def published(arch, heads, momentum_heads=None, **buffers):
    online, quantizers = with_quantizers(backbone(arch))
    extras = under("encoder_q.model.", {**quantizers, **under("fc.", heads)}) | buffers
    if momentum_heads is not None:
        extras |= under("encoder_k.", {**backbone(arch, 1), **under("fc.", momentum_heads)})
    return training(arch, under("encoder_q.model.", online) | extras), extras.keys()


def quantized_head():
    head = {"0.bn_function.running_mean": torch.randn(8), "0.weight_quantizer.observer.min_val": torch.randn(8)}
    return {**mlp(8, 8, 8), **head}


@source("SSQL-SimSiam", "ssql-published", method="ssql-simsiam", **TAR)
def _(arch):
    return published(arch, quantized_head(), **under("predictor.", mlp(8, 4, 8)))


@source("SSQL-BYOL", "ssql-published", branches=BOTH, method="ssql-byol", **TAR)
def _(arch):
    return published(arch, quantized_head(), mlp(8, 8, 8), **under("predictor.", mlp(8, 4, 8)))


@source("SSQL-MoCo", "ssql-published", branches=BOTH, method="ssql-moco", **TAR)
def _(arch):
    queue = {"queue": torch.randn(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return published(arch, quantized_head(), mlp(8, 8, 8, norm=False), **queue)


@source("SSQL's linear classification", "ssql-published", **TAR)
def _(arch):
    online, quantizers = with_quantizers(backbone(arch))
    extras = under("model.", {**quantizers, **under("fc.", classifier())})
    return training(arch, under("module.", under("model.", online) | extras)), extras.keys()


@source("SSQL's plain SimSiam", "moco", **TAR)
def _(arch):
    extras = under("encoder_q.fc.", mlp(8, 8, 8)) | under("predictor.", mlp(8, 4, 8))
    return training(arch, under("encoder_q.", backbone(arch)) | extras), extras.keys()


# ---- methods' own codes


def moco(arch, head):
    online, momentum = pair(arch, "encoder_q.", "encoder_k.")
    extras = momentum | under("encoder_q.fc.", head()) | under("encoder_k.fc.", head())
    extras |= {"queue": torch.randn(8, 16), "queue_ptr": torch.tensor([8])}
    return training(arch, under("module.", online | extras)), extras.keys()


@source("MoCo v1", "moco", branches=BOTH, method="moco", **TAR)
def _(arch):
    return moco(arch, classifier)


@source("MoCo v2", "moco", branches=BOTH, method="moco", **TAR)
def _(arch):
    return moco(arch, functools.partial(mlp, 8, 8, 4, norm=False, bias=True))


@source("MoCo v3", "moco", branches=BOTH, method="moco", **TAR)
def _(arch):
    online, momentum = pair(arch, "base_encoder.", "momentum_encoder.")
    extras = momentum | under("predictor.", mlp(8, 4, 8))
    extras |= under("base_encoder.fc.", mlp(8, 8, 8)) | under("momentum_encoder.fc.", mlp(8, 8, 8))
    return training(arch, under("module.", online | extras), scaler={"scale": 65536.0}), extras.keys()


@source("SimSiam", "simsiam", method="simsiam", **TAR)
def _(arch):
    extras = under("encoder.fc.", mlp(8, 8, 8, 8)) | under("predictor.", mlp(8, 4, 8))
    return training(arch, under("module.", under("encoder.", backbone(arch)) | extras)), extras.keys()


def solo_learn(arch, name, **heads):
    online, momentum = pair(arch, f"{name}.", f"momentum_{name}.")
    extras = {**momentum, **under("classifier.", classifier()), **under("momentum_classifier.", classifier())}
    extras |= {**under("projector.", mlp(8, 8, 8)), **under("momentum_projector.", mlp(8, 8, 8)), **heads}
    return lightning(online | extras), extras.keys()


@source("solo-learn BYOL", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    return solo_learn(arch, "backbone", **under("predictor.", mlp(8, 8, 8)))


@source("solo-learn MoCo", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    return solo_learn(arch, "backbone", queue=torch.randn(2, 8, 16), queue_ptr=torch.zeros(1, dtype=torch.long))


@source("solo-learn DINO", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    last = {"head.last_layer.weight_g": torch.randn(8, 1), "head.last_layer.weight_v": torch.randn(8, 8)}
    heads = {**under("head.mlp.", mlp(8, 8, 8)), **last, **under("momentum_", last)}
    return solo_learn(arch, "backbone", **heads, **{"dino_loss_func.center": torch.randn(1, 8)})


@source("solo-learn before 1.0.3", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    return solo_learn(arch, "encoder", **under("predictor.", mlp(8, 8, 8)))


def lightly_benchmark(online, extras):
    extras = {**extras, **under("projection_head.layers.", mlp(8, 8, 8))}
    extras |= under("online_classifier.classification_head.", classifier())
    return lightning(online | extras, hyper_parameters={"batch_size_per_device": 32}), extras.keys()


@source("lightly's BYOL", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    online, momentum = pair(arch, "backbone.", "teacher_backbone.")
    heads = under("teacher_projection_head.layers.", mlp(8, 8, 8)) | under("prediction_head.layers.", mlp(8, 8, 8))
    return lightly_benchmark(online, momentum | heads)


@source("lightly's MoCo", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    online, momentum = pair(arch, "backbone.", "key_backbone.")
    return lightly_benchmark(online, momentum | under("key_projection_head.layers.", mlp(8, 8, 8)))


@source("lightly's DINO", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    """The plain ``backbone`` is the teacher."""
    online, momentum = pair(arch, "student_backbone.", "backbone.")
    center = {"criterion.center.center": torch.randn(1, 1, 8)}
    return lightly_benchmark(online, momentum | under("student_projection_head.layers.", mlp(8, 8, 8)) | center)


@source("lightly's SwAV", "lightly", suffix=".ckpt")
def _(arch):
    prototypes = {"prototypes.heads.0.weight": torch.randn(8, 8)}
    return lightly_benchmark(under("backbone.", backbone(arch)), prototypes)


@source("lightly's examples", "lightly", branches=BOTH)
def _(arch):
    online, momentum = under("backbone.", numbered(arch)), under("backbone_momentum.", numbered(arch, 1))
    heads = under("projection_head.layers.", mlp(8, 8, 8)) | under("projection_head_momentum.layers.", mlp(8, 8, 8))
    extras = momentum | heads | under("prediction_head.layers.", mlp(8, 8, 8))
    return online | extras, extras.keys()


@source("lightly's DINO example", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    online, momentum = under("student_backbone.", numbered(arch)), under("teacher_backbone.", numbered(arch, 1))
    extras = momentum | under("student_head.layers.", mlp(8, 8, 8)) | under("teacher_head.layers.", mlp(8, 8, 8))
    return lightning(online | extras), extras.keys()


@source("SimCLR of sthalles", "simclr", method="simclr", **ZERO_TO_ONE, **TAR)
def _(arch):
    extras = under("backbone.fc.", mlp(8, 8, 4, norm=False, bias=True))
    return training(arch, under("backbone.", backbone(arch)) | extras), extras.keys()


@source("SimCLR of Spijkervet", "simclr", method="simclr", suffix=".tar", **ZERO_TO_ONE)
def _(arch):
    extras = under("projector.", mlp(8, 8, 4, norm=False))
    return under("encoder.", backbone(arch)) | extras, extras.keys()


@source("SimCLR of its authors, converted", "torchvision")
def _(arch):
    return {"state_dict": network(arch)}, {"fc.weight", "fc.bias"}


@source("BYOL of sthalles", "byol", branches=BOTH, method="byol", **ZERO_TO_ONE)
def _(arch):
    head = under("projetion.net.", mlp(8, 8, 4, bias=True))
    online, target = (under("encoder.", numbered(arch, seed)) | head for seed in (0, 1))
    states = {"online_network_state_dict": online, "target_network_state_dict": target}
    return {**states, "optimizer_state_dict": {"state": {}, "param_groups": []}}, head.keys()


@source("BYOL of lucidrains", "byol", branches=BOTH, method="byol")
def _(arch):
    extras = under("net.", network(arch)) | under("target_encoder.net.", network(arch, 1))
    extras |= {name: each for name, each in under("online_encoder.net.", network(arch)).items() if ".fc." in name}
    extras |= under("online_encoder.projector.", mlp(8, 8, 4, bias=True))
    extras |= under("target_encoder.projector.", mlp(8, 8, 4, bias=True))
    extras |= under("online_predictor.", mlp(4, 8, 4, bias=True))
    return under("online_encoder.net.", backbone(arch)) | extras, extras.keys()


@source("DINO", "dino", branches=("momentum", "online"), method="dino")
def _(arch):
    head = {**under("mlp.", mlp(8, 8, 8)), "last_layer.weight_g": torch.randn(8, 1)}
    head = under("head.", {**head, "last_layer.weight_v": torch.randn(8, 8)})
    states = [under("module.", under("backbone.", backbone(arch, seed)) | head) for seed in (0, 1)]
    args = argparse.Namespace(arch=arch, patch_size=16, use_fp16=True)
    rest = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 300, "args": args}
    return {"student": states[0], "teacher": states[1], **rest, "dino_loss": {"center": torch.randn(1, 8)}}, head.keys()


def swav(prototypes):
    return under("projection_head.", mlp(8, 8, 4, bias=True)) | under("prototypes.", prototypes)


@source("SwAV", "swav", method="swav", **SWAV, **TAR)
def _(arch):
    extras = swav({"weight": torch.randn(8, 4)})
    return under("module.", backbone(arch) | extras), extras.keys()


@source("DeepCluster v2", "swav", method="swav", **SWAV, **TAR)
def _(arch):
    extras = swav({f"prototypes{index}.weight": torch.randn(8, 4) for index in range(3)})
    return training(arch, under("module.", backbone(arch) | extras)), extras.keys()


@source("VISSL", "vissl", suffix=".torch")
def _(arch):
    trunk, heads = under("_feature_blocks.", backbone(arch)), {"0.clf.0.weight": torch.randn(10, 8)}
    base = {"model": {"trunk": trunk, "heads": heads}, "meta": {"name": "ssl"}}
    phase = {"phase_idx": 1, "iteration": 9, "loss": {}, "train_phase_idx": 1}
    return {**phase, "classy_state_dict": {"base_model": base, "optimizer": {}}}, set()


@source("VISSL's zoo", "vissl", suffix=".torch")
def _(arch):
    return {"model_state_dict": under("_feature_blocks.", backbone(arch))}, set()


@source("Barlow Twins", "backbone")
def _(arch):
    """It has a norm of its own beside the backbone; VICReg is the same without."""
    norm = nn.BatchNorm1d(8, affine=False).state_dict()
    extras = under("projector.", mlp(8, 8, 8, 8)) | under("bn.", norm)
    state = under("module.", under("backbone.", backbone(arch)) | extras)
    return {"epoch": 1000, "model": state, "optimizer": {"state": {}}}, extras.keys()


@source("mmpretrain", "backbone")
def _(arch):
    extras = under("head.fc.", classifier())
    return {
        "meta": {"mmpretrain_version": "1.0"},
        "state_dict": under("backbone.", backbone(arch)) | extras,
    }, extras.keys()


def hugging_face_classifier(arch):
    extras = under("classifier.1.", classifier())
    return under("resnet.", hugging_face_names(backbone(arch))) | extras, extras.keys()


def hugging_face_backbone(arch):
    return hugging_face_names(backbone(arch)), set()


for suffix, how in ((".safetensors", SAFETENSORS), (".bin", {"suffix": ".bin"})):
    source(f"Hugging Face {suffix}", "huggingface", **how)(hugging_face_classifier)
    source(f"Hugging Face {suffix}, no classifier", "huggingface", **how)(hugging_face_backbone)

# ---- Detectron2 and its ancestors


@source("Detectron2's torchvision", "detectron2", tensors=uncounted, **PKL)
def _(arch):
    """What its script for torchvision's networks makes: whatever is not of a stage goes to the stem."""
    extras = under("stem.fc.", classifier())
    state = detectron2_names(uncounted(backbone(arch))) | extras
    return {"model": arrays(state), "__author__": "torchvision", "matching_heuristics": True}, extras.keys()


@source("Detectron2's MoCo", "detectron2", method="moco", **PKL)
def _(arch):
    extras = under("stem.fc.", mlp(8, 8, 4, norm=False, bias=True))
    state = detectron2_names(backbone(arch)) | extras
    return {"model": arrays(state), "__author__": "MOCO", "matching_heuristics": True}, extras.keys()


def zoo_detector(kind, arch):
    resnet, parts = detector_states(arch, kind)
    extras = old_detector_extras()
    return zoo({**resnet, **parts, **extras}), extras.keys()


def trained_detector(kind, arch):
    resnet, parts = detector_states(arch, kind)
    state = {"model": resnet | parts, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 9}, "iteration": 9}
    return state, set()


for kind in ("FPN", "C4"):
    facts = {"format": f"detectron2-{kind.lower()}", "tensors": uncounted, "kind": kind}
    source(f"Detectron2's zoo, {kind}", **facts, **MSRA, **PKL)(functools.partial(zoo_detector, kind))
    source(f"a {kind} detector", **facts, **UNKNOWN)(functools.partial(trained_detector, kind))


@source("an old detector", "detectron2-fpn", tensors=uncounted, kind="FPN", channels="BGR", stride_in_1x1=None)
def _(arch):
    """From when detectors saved what they were fed."""
    resnet, parts = detector_states(arch, "FPN")
    extras = old_detector_extras()
    return {"model": {**resnet, **parts, **extras}, "iteration": 9}, extras.keys()


def biases(blobs):
    """Of convs that a norm follows; the norm makes them redundant."""
    return {f"{name[:-1]}b": torch.randn(len(value)) for name, value in blobs.items() if name.endswith("_w")}


@source("MSRA", "caffe2", tensors=uncounted, save=pickled(2), suffix=".pkl", **MSRA)
def _(arch):
    blobs = caffe2_names(backbone(arch), NORMALIZED)
    extras = {"conv1_b": torch.randn(64), "fc1000_w": torch.randn(10, 8), "fc1000_b": torch.randn(10)}
    return arrays(blobs | extras), extras.keys()


@source("MSRA of Detectron", "caffe2", tensors=affine, save=pickled(2), suffix=".pkl", **MSRA, **DETECTRON)
def _(arch):
    blobs = caffe2_names(backbone(arch), AFFINE)
    extras = {"fc1000_w": torch.randn(10, 8), "fc1000_b": torch.randn(10), **biases(blobs)}
    return arrays(blobs | extras), extras.keys()


def detectron1(kind, arch):
    blobs = caffe2_names(backbone(arch), AFFINE)
    parts = detectron1_parts(arch, detector_states(arch, kind)[1])
    momentum = {f"{name}_momentum": value for name, value in (blobs | parts).items() if value.numel() < 10_000}
    extras = momentum | biases(blobs)
    return {"blobs": arrays(blobs | parts | extras), "cfg": "MODEL:\n  MASK_ON: true\n"}, extras.keys()


for kind in ("FPN", "C4"):
    facts = {"tensors": affine, "save": pickled(2), "suffix": ".pkl", "kind": kind, **MSRA, **DETECTRON}
    source(f"Detectron's {kind}", "caffe2", **facts)(functools.partial(detectron1, kind))


@source("our own", "ssql_det", branches=BOTH, method="ssql-byol")
def _(arch):
    images = {"channels": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    facts = {"input": images, "stride_in_1x1": False, "method": "ssql-byol", "branch": "online", "source": None}
    states = {"online": backbone(arch), "momentum": backbone(arch, 1), "heads": mlp(8, 8, 8)}
    return {"ssql_det": {"version": 1, "arch": arch, **facts}, **states, "resume": {"step": 100}}, set()


@source(
    "our own, of BGR images", "ssql_det", channels="BGR", images=((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
)
def _(arch):
    images = {"channels": "BGR", "mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}
    facts = {"input": images, "stride_in_1x1": False, "method": None, "branch": "online", "source": None}
    return {"ssql_det": {"version": 1, "arch": arch, **facts}, "online": backbone(arch)}, set()


def write_source(name, arch, folder):
    """The file, and the names in it beside the backbone."""
    each = SOURCES[name]
    content, extras = each.make(arch)
    path = folder / f"file{each.suffix}"
    with open(path, "wb") as file:
        each.save(content, file)
    return path, set(extras)


def same(tensors, expected):
    """Names of what is not there, too much, or not the same to the bit."""
    wrong = set(tensors) ^ set(expected)
    shared = set(tensors) & set(expected)
    wrong |= {name for name in shared if tensors[name].dtype != torch.as_tensor(expected[name]).dtype}
    return wrong | {name for name in shared - wrong if not torch.equal(tensors[name], torch.as_tensor(expected[name]))}
