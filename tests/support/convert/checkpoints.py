"""Checkpoint files as other libraries write them: from their classes, or renamed from torchvision's names by rules.

Every file has the same backbone, ``make_backbone(arch)``, and as its moving average ``make_backbone(arch, 1)``.
``ssql_det.convert`` is not used here, so that an error there cannot hide.
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


def make_overlapping_filters(shape, numbers):
    """Random filters that overlap in one short vector, so that a file of them is small."""
    strides = (11, 7, 3, 1)[: len(shape)]
    length = 1 + sum(stride * (size - 1) for stride, size in zip(strides, shape, strict=True))
    fan_in = torch.Size(shape[1:]).numel()
    return (torch.randn(length, generator=numbers) * (2 / fan_in) ** 0.5).as_strided(shape, strides)


def make_random_tensor(name, shape, numbers):
    if name.endswith("num_batches_tracked"):
        return torch.randint(1, 10**6, shape, generator=numbers)
    if len(shape) > 1:
        return make_overlapping_filters(shape, numbers)
    noise = torch.randn(shape, generator=numbers)
    if name.endswith("running_var"):
        return 1 + 0.3 * noise.abs()
    return 0.1 * noise + (0.5 if name.endswith("weight") else 0)


@functools.cache
def make_network(arch, seed=0):
    """The state dict of torchvision's class."""
    with torch.device("meta"):
        state = torchvision.models.get_model(arch, weights=None).state_dict()
    numbers = torch.Generator().manual_seed(seed)
    return {name: make_random_tensor(name, value.shape, numbers) for name, value in state.items()}


def make_backbone(arch, seed=0):
    return {name: value for name, value in make_network(arch, seed).items() if not name.startswith("fc.")}


def drop_batch_counters(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def reset_norm_statistics(state):
    """Mean 0 and variance 1, as FrozenBatchNorm2d has for an affine layer."""
    plain = drop_batch_counters(state)
    plain |= {name: torch.zeros(value.shape) for name, value in state.items() if name.endswith("running_mean")}
    return plain | {
        name: torch.ones(value.shape) - 1e-5 for name, value in state.items() if name.endswith("running_var")
    }


def to_arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def rename_keys(state, *rules):
    """Rename each key by the first rule whose pattern fits its beginning."""

    def new(name):
        for pattern, to in rules:
            if re.match(pattern, name):
                return re.sub(f"^{pattern}", to, name, count=1)
        raise AssertionError(name)

    result = {new(name): value for name, value in state.items()}
    assert len(result) == len(state)
    return result


def add_prefix(prefix, state):
    return {prefix + name: value for name, value in state.items()}


# ---------------------------------------------------------------- other names of a ResNet's parts


def to_detectron2_names(state):
    return rename_keys(
        state,
        (r"conv1\.", "stem.conv1."),
        (r"bn1\.", "stem.conv1.norm."),
        *((rf"layer{stage}\.(\d+)\.conv", rf"res{stage + 1}.\1.conv") for stage in (1, 2, 3, 4)),
        *((rf"layer{stage}\.(\d+)\.bn(\d)", rf"res{stage + 1}.\1.conv\2.norm") for stage in (1, 2, 3, 4)),
        *((rf"layer{stage}\.(\d+)\.downsample\.0", rf"res{stage + 1}.\1.shortcut") for stage in (1, 2, 3, 4)),
        *((rf"layer{stage}\.(\d+)\.downsample\.1", rf"res{stage + 1}.\1.shortcut.norm") for stage in (1, 2, 3, 4)),
    )


def to_caffe2_names(state, norm_suffixes):
    """``norm_suffixes`` has the suffix of each tensor of a norm; tensors without one are dropped."""
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
        elif leaf in norm_suffixes:
            blobs[f"{blob}_{norm_suffixes[leaf]}"] = value
    return blobs


BATCH_NORM_SUFFIXES = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
AFFINE_SUFFIXES = {"weight": "s", "bias": "b"}


def to_hugging_face_names(state):
    stages = []
    for stage in (1, 2, 3, 4):
        block = rf"encoder.stages.{stage - 1}.layers.\1"
        for conv in (1, 2, 3):
            stages += [(rf"layer{stage}\.(\d+)\.conv{conv}", f"{block}.layer.{conv - 1}.convolution")]
            stages += [(rf"layer{stage}\.(\d+)\.bn{conv}", f"{block}.layer.{conv - 1}.normalization")]
        stages += [(rf"layer{stage}\.(\d+)\.downsample\.0", f"{block}.shortcut.convolution")]
        stages += [(rf"layer{stage}\.(\d+)\.downsample\.1", f"{block}.shortcut.normalization")]
    stem = [("conv1", "embedder.embedder.convolution"), ("bn1", "embedder.embedder.normalization")]
    return rename_keys(state, *stem, *stages)


def make_numbered_layers(arch, seed=0):
    """The state dict of ``nn.Sequential(*children)``."""
    with torch.device("meta"):
        model = torchvision.models.get_model(arch, weights=None)
    model.load_state_dict(make_network(arch, seed), assign=True)
    return nn.Sequential(*list(model.children())[:-1]).state_dict()


def add_quantizers(state):
    """As in the published SSQL code: each conv has its norm, a copy of its weight and the range of the weight."""
    named = rename_keys(
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
        quantizers |= {f"{quantizer}.weight": make_overlapping_filters(value.shape, numbers)}
        quantizers |= {f"{quantizer}.observer.min_val": low, f"{quantizer}.observer.max_val": high}
    return named, quantizers


# ---------------------------------------------------------------- heads


def make_mlp(*widths, norm=True, bias=False):
    """The state dict of Linear, norm, ReLU, ..., Linear."""
    layers = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1])).state_dict()


def make_classifier():
    return nn.Linear(8, 10).state_dict()


def make_training_checkpoint(arch, state, **more):
    """As main_moco.py and the many scripts derived from it save it."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    return {"epoch": 100, "arch": arch, "state_dict": state, "optimizer": optimizer.state_dict(), **more}


def make_lightning_checkpoint(state, **more):
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


def make_config(arch, kind, *overrides):
    """The engine's config of a detector with a ResNet of full size and small heads; ``kind`` is FPN or C4."""
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


def build_detector(arch, kind, *overrides):
    """The engine's detector; for ResNet-18 and 34, a C4 head has that network's last stage."""
    cfg = make_config(arch, kind, *overrides)
    model = d2.build_model(cfg)
    if kind == "C4" and arch != "resnet50":
        stages = d2.ResNet.make_default_stages(cfg.MODEL.RESNETS.DEPTH, norm=cfg.MODEL.RESNETS.NORM)
        model.roi_heads.res5 = nn.Sequential(*stages[3])
    return model


def add_detector_prefixes(kind, state):
    """From Detectron2's names of a ResNet to those in a detector."""
    if kind == "FPN":
        return add_prefix("backbone.bottom_up.", state)
    return {("roi_heads." if name.startswith("res5.") else "backbone.") + name: each for name, each in state.items()}


@functools.cache
def make_detector_states(arch, kind):
    """The state dict of a detector with frozen norms, in two parts: its backbone and the rest."""
    state = build_detector(arch, kind).state_dict()
    resnet = add_detector_prefixes(kind, to_detectron2_names(drop_batch_counters(make_backbone(arch))))
    assert {name: value.shape for name, value in resnet.items() if name in state} == {
        name: value.shape for name, value in resnet.items()
    }
    numbers = torch.Generator().manual_seed(7)
    parts = {
        name: make_random_tensor(name, value.shape, numbers) for name, value in state.items() if name not in resnet
    }
    assert not [name for name in parts if "norm" in name]
    return resnet, parts


def make_old_detector_entries():
    anchors = {f"proposal_generator.anchor_generator.cell_anchors.{level}": torch.randn(3, 4) for level in range(5)}
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    return {**anchors, "pixel_mean": mean, "pixel_std": torch.ones(3, 1, 1)}


def make_model_zoo_file(state):
    """As the model zoo publishes detectors: an OrderedDict with ``_metadata``."""
    model = collections.OrderedDict(to_arrays(state))
    model._metadata = collections.OrderedDict({"": {"version": 1}})
    return {"model": model, "__author__": "Detectron2 Model Zoo"}


def to_detectron1_names(arch, parts):
    """The blobs of a detector without its backbone; the background is the first class, with boxes and a mask."""
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
        lateral = "_lateral" if stage < 5 else ""  # the top level is not added to another one
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


# ---------------------------------------------------------------- kinds of files


@dataclass(frozen=True)
class FileKind:
    """A kind of checkpoint file: a library's or a program's.

    ``make(arch)`` returns the content of the file and the names of tensors that are not of the backbone of its first
    branch.

    ``convert_backbone`` turns torchvision's tensors into what this kind of file can hold. ``detector`` is FPN or C4;
    None for a backbone alone. ``format`` and the other fields are what a reader must find.
    """

    format: str
    make: Callable
    save: Callable = torch.save
    suffix: str = ".pth"
    convert_backbone: Callable = dict
    branches: tuple = ("online",)
    channels: str | None = "RGB"
    stride_in_1x1: bool | None = False
    detector: str | None = None
    method: str | None = None
    mean_and_std: tuple | None = None  # if not the usual ones for these channels

    def get_mean_and_std(self):
        usual = {
            "RGB": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
            "BGR": ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
            None: None,
        }
        return self.mean_and_std or usual[self.channels]


FILE_KINDS = {}
BOTH = ("online", "momentum")
MSRA = {"channels": "BGR", "stride_in_1x1": True}
ZERO_TO_ONE = {"mean_and_std": ((0, 0, 0), (255, 255, 255))}
SWAV = {"mean_and_std": ((123.675, 116.28, 103.53), (58.14, 57.12, 57.375))}  # .228 of 255, where others have .229
DETECTRON = {"mean_and_std": ((102.9801, 115.9465, 122.7717), (1, 1, 1))}
UNKNOWN = {"channels": None, "stride_in_1x1": None}


def file_kind(name, format, **fields):
    def register(make):
        FILE_KINDS[name] = FileKind(format, make, **fields)
        return make

    return register


def make_pickle_writer(protocol):
    return lambda content, file: pickle.dump(content, file, protocol)


def write_safetensors(content, file):
    state = {name: value.contiguous() for name, value in content.items()}
    file.write(safetensors.torch.save(state, {"format": "pt"}))


PICKLE = {"save": make_pickle_writer(4), "suffix": ".pkl"}
SAFETENSORS = {"save": write_safetensors, "suffix": ".safetensors"}
TAR = {"suffix": ".pth.tar"}


def make_branches(arch, online, momentum):
    return add_prefix(online, make_backbone(arch)), add_prefix(momentum, make_backbone(arch, 1))


# ---- torchvision's names


@file_kind("torchvision", "torchvision")
def _(arch):
    return collections.OrderedDict(make_network(arch)), {"fc.weight", "fc.bias"}


@file_kind("torchvision, DDP", "torchvision")
def _(arch):
    return add_prefix("module.", make_network(arch)), {"fc.weight", "fc.bias"}


@file_kind("torchvision, compiled, DDP", "torchvision")
def _(arch):
    return {"model": add_prefix("module._orig_mod.", make_network(arch))}, {"fc.weight", "fc.bias"}


@file_kind("torchvision, trained further", "torchvision", **TAR)
def _(arch):
    """MoCo's linear classification has this form too."""
    return make_training_checkpoint(arch, add_prefix("module.", make_network(arch)), best_acc1=torch.tensor(76.1)), {
        "fc.weight",
        "fc.bias",
    }


@file_kind("torchvision, before norms counted", "torchvision", convert_backbone=drop_batch_counters)
def _(arch):
    return drop_batch_counters(make_network(arch)), {"fc.weight", "fc.bias"}


@file_kind(
    "torchvision, old container",
    "torchvision",
    save=functools.partial(torch.save, _use_new_zipfile_serialization=False),
)
def _(arch):
    return make_network(arch), {"fc.weight", "fc.bias"}


@file_kind("no classifier", "torchvision")
def _(arch):
    """As DINO, Barlow Twins and VICReg publish their backbones."""
    return make_backbone(arch), set()


def make_timm_state(arch):
    with torch.device("meta"):
        model = timm.create_model(arch)
    model.load_state_dict(make_network(arch), assign=True)
    return model.state_dict(), {"fc.weight", "fc.bias"}


file_kind("timm .bin", "torchvision", suffix=".bin")(make_timm_state)  # it has torchvision's names and conventions
file_kind("timm .safetensors", "safetensors", **SAFETENSORS)(make_timm_state)

# ---- the published SSQL code


def make_published_checkpoint(arch, heads, momentum_heads=None, **buffers):
    online, quantizers = add_quantizers(make_backbone(arch))
    extras = add_prefix("encoder_q.model.", {**quantizers, **add_prefix("fc.", heads)}) | buffers
    if momentum_heads is not None:
        extras |= add_prefix("encoder_k.", {**make_backbone(arch, 1), **add_prefix("fc.", momentum_heads)})
    return make_training_checkpoint(arch, add_prefix("encoder_q.model.", online) | extras), extras.keys()


def make_quantized_head():
    head = {"0.bn_function.running_mean": torch.randn(8), "0.weight_quantizer.observer.min_val": torch.randn(8)}
    return {**make_mlp(8, 8, 8), **head}


@file_kind("SSQL-SimSiam", "ssql-published", method="ssql-simsiam", **TAR)
def _(arch):
    return make_published_checkpoint(arch, make_quantized_head(), **add_prefix("predictor.", make_mlp(8, 4, 8)))


@file_kind("SSQL-BYOL", "ssql-published", branches=BOTH, method="ssql-byol", **TAR)
def _(arch):
    return make_published_checkpoint(
        arch, make_quantized_head(), make_mlp(8, 8, 8), **add_prefix("predictor.", make_mlp(8, 4, 8))
    )


@file_kind("SSQL-MoCo", "ssql-published", branches=BOTH, method="ssql-moco", **TAR)
def _(arch):
    queue = {"queue": torch.randn(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return make_published_checkpoint(arch, make_quantized_head(), make_mlp(8, 8, 8, norm=False), **queue)


@file_kind("SSQL's linear classification", "ssql-published", **TAR)
def _(arch):
    online, quantizers = add_quantizers(make_backbone(arch))
    extras = add_prefix("model.", {**quantizers, **add_prefix("fc.", make_classifier())})
    return make_training_checkpoint(arch, add_prefix("module.", add_prefix("model.", online) | extras)), extras.keys()


@file_kind("SSQL's plain SimSiam", "moco", **TAR)
def _(arch):
    extras = add_prefix("encoder_q.fc.", make_mlp(8, 8, 8)) | add_prefix("predictor.", make_mlp(8, 4, 8))
    return make_training_checkpoint(arch, add_prefix("encoder_q.", make_backbone(arch)) | extras), extras.keys()


# ---- methods' own codes


def make_moco_checkpoint(arch, head):
    online, momentum = make_branches(arch, "encoder_q.", "encoder_k.")
    extras = momentum | add_prefix("encoder_q.fc.", head()) | add_prefix("encoder_k.fc.", head())
    extras |= {"queue": torch.randn(8, 16), "queue_ptr": torch.tensor([8])}
    return make_training_checkpoint(arch, add_prefix("module.", online | extras)), extras.keys()


@file_kind("MoCo v1", "moco", branches=BOTH, method="moco", **TAR)
def _(arch):
    return make_moco_checkpoint(arch, make_classifier)


@file_kind("MoCo v2", "moco", branches=BOTH, method="moco", **TAR)
def _(arch):
    return make_moco_checkpoint(arch, functools.partial(make_mlp, 8, 8, 4, norm=False, bias=True))


@file_kind("MoCo v3", "moco", branches=BOTH, method="moco", **TAR)
def _(arch):
    online, momentum = make_branches(arch, "base_encoder.", "momentum_encoder.")
    extras = momentum | add_prefix("predictor.", make_mlp(8, 4, 8))
    extras |= add_prefix("base_encoder.fc.", make_mlp(8, 8, 8)) | add_prefix("momentum_encoder.fc.", make_mlp(8, 8, 8))
    return make_training_checkpoint(
        arch, add_prefix("module.", online | extras), scaler={"scale": 65536.0}
    ), extras.keys()


@file_kind("SimSiam", "simsiam", method="simsiam", **TAR)
def _(arch):
    extras = add_prefix("encoder.fc.", make_mlp(8, 8, 8, 8)) | add_prefix("predictor.", make_mlp(8, 4, 8))
    return make_training_checkpoint(
        arch, add_prefix("module.", add_prefix("encoder.", make_backbone(arch)) | extras)
    ), extras.keys()


def make_solo_learn_checkpoint(arch, name, **heads):
    online, momentum = make_branches(arch, f"{name}.", f"momentum_{name}.")
    extras = {
        **momentum,
        **add_prefix("classifier.", make_classifier()),
        **add_prefix("momentum_classifier.", make_classifier()),
    }
    extras |= {
        **add_prefix("projector.", make_mlp(8, 8, 8)),
        **add_prefix("momentum_projector.", make_mlp(8, 8, 8)),
        **heads,
    }
    return make_lightning_checkpoint(online | extras), extras.keys()


@file_kind("solo-learn BYOL", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    return make_solo_learn_checkpoint(arch, "backbone", **add_prefix("predictor.", make_mlp(8, 8, 8)))


@file_kind("solo-learn MoCo", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    return make_solo_learn_checkpoint(
        arch, "backbone", queue=torch.randn(2, 8, 16), queue_ptr=torch.zeros(1, dtype=torch.long)
    )


@file_kind("solo-learn DINO", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    last = {"head.last_layer.weight_g": torch.randn(8, 1), "head.last_layer.weight_v": torch.randn(8, 8)}
    heads = {**add_prefix("head.mlp.", make_mlp(8, 8, 8)), **last, **add_prefix("momentum_", last)}
    return make_solo_learn_checkpoint(arch, "backbone", **heads, **{"dino_loss_func.center": torch.randn(1, 8)})


@file_kind("solo-learn before 1.0.3", "solo-learn", branches=BOTH, suffix=".ckpt")
def _(arch):
    return make_solo_learn_checkpoint(arch, "encoder", **add_prefix("predictor.", make_mlp(8, 8, 8)))


def make_lightly_benchmark_checkpoint(online, extras):
    extras = {**extras, **add_prefix("projection_head.layers.", make_mlp(8, 8, 8))}
    extras |= add_prefix("online_classifier.classification_head.", make_classifier())
    return make_lightning_checkpoint(online | extras, hyper_parameters={"batch_size_per_device": 32}), extras.keys()


@file_kind("lightly's BYOL", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    online, momentum = make_branches(arch, "backbone.", "teacher_backbone.")
    heads = add_prefix("teacher_projection_head.layers.", make_mlp(8, 8, 8)) | add_prefix(
        "prediction_head.layers.", make_mlp(8, 8, 8)
    )
    return make_lightly_benchmark_checkpoint(online, momentum | heads)


@file_kind("lightly's MoCo", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    online, momentum = make_branches(arch, "backbone.", "key_backbone.")
    return make_lightly_benchmark_checkpoint(
        online, momentum | add_prefix("key_projection_head.layers.", make_mlp(8, 8, 8))
    )


@file_kind("lightly's DINO", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    """The plain ``backbone`` is the teacher."""
    online, momentum = make_branches(arch, "student_backbone.", "backbone.")
    center = {"criterion.center.center": torch.randn(1, 1, 8)}
    return make_lightly_benchmark_checkpoint(
        online, momentum | add_prefix("student_projection_head.layers.", make_mlp(8, 8, 8)) | center
    )


@file_kind("lightly's SwAV", "lightly", suffix=".ckpt")
def _(arch):
    prototypes = {"prototypes.heads.0.weight": torch.randn(8, 8)}
    return make_lightly_benchmark_checkpoint(add_prefix("backbone.", make_backbone(arch)), prototypes)


@file_kind("lightly's examples", "lightly", branches=BOTH)
def _(arch):
    online, momentum = (
        add_prefix("backbone.", make_numbered_layers(arch)),
        add_prefix("backbone_momentum.", make_numbered_layers(arch, 1)),
    )
    heads = add_prefix("projection_head.layers.", make_mlp(8, 8, 8)) | add_prefix(
        "projection_head_momentum.layers.", make_mlp(8, 8, 8)
    )
    extras = momentum | heads | add_prefix("prediction_head.layers.", make_mlp(8, 8, 8))
    return online | extras, extras.keys()


@file_kind("lightly's DINO example", "lightly", branches=BOTH, suffix=".ckpt")
def _(arch):
    online, momentum = (
        add_prefix("student_backbone.", make_numbered_layers(arch)),
        add_prefix("teacher_backbone.", make_numbered_layers(arch, 1)),
    )
    extras = (
        momentum
        | add_prefix("student_head.layers.", make_mlp(8, 8, 8))
        | add_prefix("teacher_head.layers.", make_mlp(8, 8, 8))
    )
    return make_lightning_checkpoint(online | extras), extras.keys()


@file_kind("SimCLR of sthalles", "simclr", method="simclr", **ZERO_TO_ONE, **TAR)
def _(arch):
    extras = add_prefix("backbone.fc.", make_mlp(8, 8, 4, norm=False, bias=True))
    return make_training_checkpoint(arch, add_prefix("backbone.", make_backbone(arch)) | extras), extras.keys()


@file_kind("SimCLR of Spijkervet", "simclr", method="simclr", suffix=".tar", **ZERO_TO_ONE)
def _(arch):
    extras = add_prefix("projector.", make_mlp(8, 8, 4, norm=False))
    return add_prefix("encoder.", make_backbone(arch)) | extras, extras.keys()


@file_kind("SimCLR of its authors, converted", "torchvision")
def _(arch):
    return {"state_dict": make_network(arch)}, {"fc.weight", "fc.bias"}


@file_kind("BYOL of sthalles", "byol", branches=BOTH, method="byol", **ZERO_TO_ONE)
def _(arch):
    head = add_prefix("projetion.net.", make_mlp(8, 8, 4, bias=True))
    online, target = (add_prefix("encoder.", make_numbered_layers(arch, seed)) | head for seed in (0, 1))
    states = {"online_network_state_dict": online, "target_network_state_dict": target}
    return {**states, "optimizer_state_dict": {"state": {}, "param_groups": []}}, head.keys()


@file_kind("BYOL of lucidrains", "byol", branches=BOTH, method="byol")
def _(arch):
    extras = add_prefix("net.", make_network(arch)) | add_prefix("target_encoder.net.", make_network(arch, 1))
    extras |= {
        name: each for name, each in add_prefix("online_encoder.net.", make_network(arch)).items() if ".fc." in name
    }
    extras |= add_prefix("online_encoder.projector.", make_mlp(8, 8, 4, bias=True))
    extras |= add_prefix("target_encoder.projector.", make_mlp(8, 8, 4, bias=True))
    extras |= add_prefix("online_predictor.", make_mlp(4, 8, 4, bias=True))
    return add_prefix("online_encoder.net.", make_backbone(arch)) | extras, extras.keys()


@file_kind("DINO", "dino", branches=("momentum", "online"), method="dino")
def _(arch):
    head = {**add_prefix("mlp.", make_mlp(8, 8, 8)), "last_layer.weight_g": torch.randn(8, 1)}
    head = add_prefix("head.", {**head, "last_layer.weight_v": torch.randn(8, 8)})
    states = [add_prefix("module.", add_prefix("backbone.", make_backbone(arch, seed)) | head) for seed in (0, 1)]
    args = argparse.Namespace(arch=arch, patch_size=16, use_fp16=True)
    rest = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 300, "args": args}
    return {"student": states[0], "teacher": states[1], **rest, "dino_loss": {"center": torch.randn(1, 8)}}, head.keys()


def make_swav_heads(prototypes):
    return add_prefix("projection_head.", make_mlp(8, 8, 4, bias=True)) | add_prefix("prototypes.", prototypes)


@file_kind("SwAV", "swav", method="swav", **SWAV, **TAR)
def _(arch):
    extras = make_swav_heads({"weight": torch.randn(8, 4)})
    return add_prefix("module.", make_backbone(arch) | extras), extras.keys()


@file_kind("DeepCluster v2", "swav", method="swav", **SWAV, **TAR)
def _(arch):
    extras = make_swav_heads({f"prototypes{index}.weight": torch.randn(8, 4) for index in range(3)})
    return make_training_checkpoint(arch, add_prefix("module.", make_backbone(arch) | extras)), extras.keys()


@file_kind("VISSL", "vissl", suffix=".torch")
def _(arch):
    trunk, heads = add_prefix("_feature_blocks.", make_backbone(arch)), {"0.clf.0.weight": torch.randn(10, 8)}
    base = {"model": {"trunk": trunk, "heads": heads}, "meta": {"name": "ssl"}}
    phase = {"phase_idx": 1, "iteration": 9, "loss": {}, "train_phase_idx": 1}
    return {**phase, "classy_state_dict": {"base_model": base, "optimizer": {}}}, set()


@file_kind("VISSL's zoo", "vissl", suffix=".torch")
def _(arch):
    return {"model_state_dict": add_prefix("_feature_blocks.", make_backbone(arch))}, set()


@file_kind("Barlow Twins", "backbone")
def _(arch):
    """It has a norm after the projector; VICReg has the same form without it."""
    norm = nn.BatchNorm1d(8, affine=False).state_dict()
    extras = add_prefix("projector.", make_mlp(8, 8, 8, 8)) | add_prefix("bn.", norm)
    state = add_prefix("module.", add_prefix("backbone.", make_backbone(arch)) | extras)
    return {"epoch": 1000, "model": state, "optimizer": {"state": {}}}, extras.keys()


@file_kind("mmpretrain", "backbone")
def _(arch):
    extras = add_prefix("head.fc.", make_classifier())
    return {
        "meta": {"mmpretrain_version": "1.0"},
        "state_dict": add_prefix("backbone.", make_backbone(arch)) | extras,
    }, extras.keys()


def make_hugging_face_classifier(arch):
    extras = add_prefix("classifier.1.", make_classifier())
    return add_prefix("resnet.", to_hugging_face_names(make_backbone(arch))) | extras, extras.keys()


def make_hugging_face_backbone(arch):
    return to_hugging_face_names(make_backbone(arch)), set()


for suffix, options in ((".safetensors", SAFETENSORS), (".bin", {"suffix": ".bin"})):
    file_kind(f"Hugging Face {suffix}", "huggingface", **options)(make_hugging_face_classifier)
    file_kind(f"Hugging Face {suffix}, no classifier", "huggingface", **options)(make_hugging_face_backbone)

# ---- Detectron2 and its ancestors


@file_kind("Detectron2's torchvision", "detectron2", convert_backbone=drop_batch_counters, **PICKLE)
def _(arch):
    """As its script converts torchvision's networks: the classifier too is renamed as if of the stem."""
    extras = add_prefix("stem.fc.", make_classifier())
    state = to_detectron2_names(drop_batch_counters(make_backbone(arch))) | extras
    return {"model": to_arrays(state), "__author__": "torchvision", "matching_heuristics": True}, extras.keys()


@file_kind("Detectron2's MoCo", "detectron2", method="moco", **PICKLE)
def _(arch):
    extras = add_prefix("stem.fc.", make_mlp(8, 8, 4, norm=False, bias=True))
    state = to_detectron2_names(make_backbone(arch)) | extras
    return {"model": to_arrays(state), "__author__": "MOCO", "matching_heuristics": True}, extras.keys()


def make_zoo_detector(kind, arch):
    resnet, parts = make_detector_states(arch, kind)
    extras = make_old_detector_entries()
    return make_model_zoo_file({**resnet, **parts, **extras}), extras.keys()


def make_trained_detector(kind, arch):
    resnet, parts = make_detector_states(arch, kind)
    state = {"model": resnet | parts, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 9}, "iteration": 9}
    return state, set()


for kind in ("FPN", "C4"):
    fields = {"format": f"detectron2-{kind.lower()}", "convert_backbone": drop_batch_counters, "detector": kind}
    file_kind(f"Detectron2's zoo, {kind}", **fields, **MSRA, **PICKLE)(functools.partial(make_zoo_detector, kind))
    file_kind(f"a {kind} detector", **fields, **UNKNOWN)(functools.partial(make_trained_detector, kind))


@file_kind(
    "an old detector",
    "detectron2-fpn",
    convert_backbone=drop_batch_counters,
    detector="FPN",
    channels="BGR",
    stride_in_1x1=None,
)
def _(arch):
    """Old versions of Detectron2 stored mean and std."""
    resnet, parts = make_detector_states(arch, "FPN")
    extras = make_old_detector_entries()
    return {"model": {**resnet, **parts, **extras}, "iteration": 9}, extras.keys()


def make_conv_biases(blobs):
    """Biases of convs before a norm, which makes them redundant."""
    return {f"{name[:-1]}b": torch.randn(len(value)) for name, value in blobs.items() if name.endswith("_w")}


@file_kind("MSRA", "caffe2", convert_backbone=drop_batch_counters, save=make_pickle_writer(2), suffix=".pkl", **MSRA)
def _(arch):
    blobs = to_caffe2_names(make_backbone(arch), BATCH_NORM_SUFFIXES)
    extras = {"conv1_b": torch.randn(64), "fc1000_w": torch.randn(10, 8), "fc1000_b": torch.randn(10)}
    return to_arrays(blobs | extras), extras.keys()


@file_kind(
    "MSRA of Detectron",
    "caffe2",
    convert_backbone=reset_norm_statistics,
    save=make_pickle_writer(2),
    suffix=".pkl",
    **MSRA,
    **DETECTRON,
)
def _(arch):
    blobs = to_caffe2_names(make_backbone(arch), AFFINE_SUFFIXES)
    extras = {"fc1000_w": torch.randn(10, 8), "fc1000_b": torch.randn(10), **make_conv_biases(blobs)}
    return to_arrays(blobs | extras), extras.keys()


def make_detectron1_file(kind, arch):
    blobs = to_caffe2_names(make_backbone(arch), AFFINE_SUFFIXES)
    parts = to_detectron1_names(arch, make_detector_states(arch, kind)[1])
    momentum = {f"{name}_momentum": value for name, value in (blobs | parts).items() if value.numel() < 10_000}
    extras = momentum | make_conv_biases(blobs)
    return {"blobs": to_arrays(blobs | parts | extras), "cfg": "MODEL:\n  MASK_ON: true\n"}, extras.keys()


for kind in ("FPN", "C4"):
    fields = {
        "convert_backbone": reset_norm_statistics,
        "save": make_pickle_writer(2),
        "suffix": ".pkl",
        "detector": kind,
        **MSRA,
        **DETECTRON,
    }
    file_kind(f"Detectron's {kind}", "caffe2", **fields)(functools.partial(make_detectron1_file, kind))


@file_kind("ssql_det", "ssql_det", branches=BOTH, method="ssql-byol")
def _(arch):
    input_format = {"channels": "RGB", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    fields = {"input": input_format, "stride_in_1x1": False, "method": "ssql-byol", "branch": "online", "source": None}
    states = {"online": make_backbone(arch), "momentum": make_backbone(arch, 1), "heads": make_mlp(8, 8, 8)}
    return {"ssql_det": {"version": 1, "arch": arch, **fields}, **states, "resume": {"step": 100}}, set()


@file_kind(
    "ssql_det, of BGR images",
    "ssql_det",
    channels="BGR",
    mean_and_std=((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
)
def _(arch):
    input_format = {"channels": "BGR", "mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}
    fields = {"input": input_format, "stride_in_1x1": False, "method": None, "branch": "online", "source": None}
    return {"ssql_det": {"version": 1, "arch": arch, **fields}, "online": make_backbone(arch)}, set()


def write_checkpoint_file(name, arch, folder):
    """Return the path, and the names in the file that are not of its backbone."""
    each = FILE_KINDS[name]
    content, extras = each.make(arch)
    path = folder / f"file{each.suffix}"
    with open(path, "wb") as file:
        each.save(content, file)
    return path, set(extras)


def find_differences(tensors, expected):
    """The names of tensors that are missing, unexpected or not bit-identical."""
    wrong = set(tensors) ^ set(expected)
    shared = set(tensors) & set(expected)
    wrong |= {name for name in shared if tensors[name].dtype != torch.as_tensor(expected[name]).dtype}
    return wrong | {name for name in shared - wrong if not torch.equal(tensors[name], torch.as_tensor(expected[name]))}
