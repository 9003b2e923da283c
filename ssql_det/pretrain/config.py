"""The keys of a pretraining config with their defaults, and the network that a config describes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from ssql_det.backbones import Backbone, build_backbone
from ssql_det.convert import Facts, Input
from ssql_det.core.config import load_config
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.pretrain.checkpoint import require_savable
from ssql_det.pretrain.trained import read_backbone
from ssql_det.quant import Bits, FixedBits, SampledBits, Scheme
from ssql_det.ssl import BYOL, SSQL, Method, MoCo, SimCLR, SimSiam
from ssql_det.ssl.views import Recipe, recipe

NO_MATTER = ("OUTPUT_DIR", "DEVICE", "DATA.WORKERS", "PERIODS.LOG", "PERIODS.CHECKPOINT")  # to what is learned

DEFAULTS: dict[str, Any] = {
    "METHOD": "simsiam",  # or byol, moco, simclr
    "DIM": 2048,  # of the features that views are compared in
    "HIDDEN": 512,  # of the predictor, and but for SimSiam of the projector
    "LAST_NORM": False,  # BYOL: the projector ends in a norm, as SimSiam's always does
    "MOMENTUM": 0.99,  # BYOL, MoCo: of the moving average
    "QUEUE": 4096,  # MoCo: keys
    "TEMPERATURE": 0.2,  # MoCo, SimCLR
    "CROSS": False,  # SSQL over SimCLR: quantized views against float ones, not as published against quantized ones
    "SSQL": {
        "ENABLED": True,  # False: the method alone
        "WEIGHT_BITS": [2, 8],  # drawn anew each step, ends included
        "ACT_BITS": [4, 8],
        "SHARED_DRAW": False,
        "FIXED_BITS": "",  # as 4w4a: the same each step
        "QUANTIZE_PREDICTIONS": True,
        "QUANTIZE_TARGETS": False,
        "AUXILIARY": True,  # the float loss is half of the loss
        "PER_RANK": False,  # each process quantizes by its own ranges, as published
        "SCHEME": "minmax",  # the published quantizers, or others, as "weight=centred, act=mse"
    },
    "BACKBONE": "resnet50",
    "ZERO_INIT_RESIDUAL": False,
    "INIT": "",  # a backbone to begin with, in any format that `ssql-det convert` reads
    "DATA": {
        "TRAIN": "",  # a folder, a list, cifar10:FOLDER
        "RECIPE": "imagenet",  # of the views: imagenet, cifar or digits
        "SIZE": 0,  # of the views, in pixels; 0 for the recipe's own
        "WORKERS": 4,
        "MOST_BAD_IMAGES": 0,  # so many files may be unreadable, in each process
        "CACHE_MB": 0,  # of memory, in each worker, for images that stay decoded
    },
    "OPTIM": {
        "NAME": "sgd",  # or lars
        "BATCH": 256,  # over all processes
        "EPOCHS": 100,
        "LR": 0.05,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 1e-4,
        "WARMUP_EPOCHS": 0.0,
        "PER_EPOCH": True,  # the schedule steps once an epoch, as published; False: at each step
    },
    "AMP": False,  # bfloat16 where it serves
    "SYNC_NORM": False,  # BatchNorm over all processes
    "MONITOR": {
        "PERIOD": 0,  # epochs between kNN looks; 0 for none
        "DATA": "",  # labelled; "" for DATA.TRAIN's own
        "BITS": ["FP", "2w4a"],
        "SCHEME": "minmax",
        "IMAGES": 2000,  # of each split at most
    },
    "PERIODS": {"LOG": 20, "CHECKPOINT": 1},  # steps, epochs
    "DEVICE": "cuda",  # the CPU where there is none
    "SEED": 0,
    "OUTPUT_DIR": "./output/pretrain",
}
_logger = logging.getLogger(__name__)
_BUILDERS: dict[str, Callable[[Backbone, CfgNode], Method]] = {
    "simsiam": lambda backbone, cfg: SimSiam(backbone, cfg.DIM, cfg.HIDDEN),
    "byol": lambda backbone, cfg: BYOL(backbone, cfg.DIM, cfg.HIDDEN, cfg.MOMENTUM, cfg.LAST_NORM),
    "moco": lambda backbone, cfg: MoCo(backbone, cfg.DIM, cfg.HIDDEN, cfg.QUEUE, cfg.TEMPERATURE, cfg.MOMENTUM),
    "simclr": lambda backbone, cfg: SimCLR(backbone, cfg.DIM, cfg.HIDDEN, cfg.TEMPERATURE, cfg.CROSS),
}
_TITLES = {"simsiam": SimSiam.title, "byol": BYOL.title, "moco": MoCo.title, "simclr": SimCLR.title}


def read_config(file: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> CfgNode:
    """The defaults, the file over them, then ``KEY VALUE`` pairs; frozen."""
    return load_config(CfgNode(DEFAULTS), file, overrides)


def build_network(cfg: CfgNode, begins: bool = True) -> tuple[SSQL | Method, Backbone]:
    """What is trained, and the backbone in it, from scratch, or where it ``begins`` from ``INIT``.

    >>> network, backbone = build_network(read_config("configs/pretrain/cifar10_r18_ssql.yaml"))
    """
    if cfg.METHOD not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise UserError(f"METHOD {cfg.METHOD!r} is not here{did_you_mean(cfg.METHOD, _BUILDERS)} (known: {known})")
    backbone = build_backbone(cfg.BACKBONE, cfg.ZERO_INIT_RESIDUAL)
    require_savable(backbone)
    backbone.require_size(views_of(cfg).size)
    if cfg.INIT and begins:
        _begin_with(cfg.INIT, backbone, views_of(cfg).input)
    method = _BUILDERS[cfg.METHOD](backbone, cfg)
    if not cfg.SSQL.ENABLED:
        return method, backbone
    node = cfg.SSQL
    switches = (node.QUANTIZE_PREDICTIONS, node.QUANTIZE_TARGETS, node.AUXILIARY, node.PER_RANK)
    bits, scheme = _bits(cfg), Scheme.parse(node.SCHEME)
    scheme.require_widths(bits.ends)
    return SSQL(method, bits, *switches, scheme), backbone


def _begin_with(path: str, backbone: Backbone, images: Input) -> None:
    pretrained = read_backbone(path, into=backbone)
    name, theirs = pretrained.source.name, pretrained.facts.input
    if theirs is not None and theirs.channels != images.channels:
        raise UserError(
            f"{name} was trained on {theirs.channels} images and is fed {images.channels} here; turn it "
            f"first: ssql-det convert {name} OUT.pth --to torchvision"
        )
    if theirs not in (None, images):
        _logger.warning("%s was trained on images normalized by %s, here it is %s", name, theirs, images)


def views_of(cfg: CfgNode) -> Recipe:
    return recipe(cfg.DATA.RECIPE, cfg.DATA.SIZE or None)


def facts_of(cfg: CfgNode) -> Facts:
    """What whoever uses the backbone has to know of it."""
    title = _TITLES[cfg.METHOD]
    method = title
    if cfg.SSQL.ENABLED:
        method = "SSQL" if cfg.METHOD == "simsiam" else f"SSQL-{title}"
        altered = [key for key, value in DEFAULTS["SSQL"].items() if key != "PER_RANK" and cfg.SSQL[key] != value]
        method += f", altered: {', '.join(f'{key} {cfg.SSQL[key]}' for key in altered)}" if altered else ""
    return Facts(views_of(cfg).input, stride_in_1x1=False, method=method, seed=cfg.SEED, from_file=True)


def _bits(cfg: CfgNode) -> FixedBits | SampledBits:
    node = cfg.SSQL
    if node.FIXED_BITS:
        return FixedBits(Bits.parse(node.FIXED_BITS))
    ends = {}
    for key in ("WEIGHT_BITS", "ACT_BITS"):
        if len(node[key]) != 2:
            raise UserError(f"SSQL.{key} is the least and the most, as [2, 8]; got {list(node[key])}")
        ends[key] = tuple(node[key])
    return SampledBits(cfg.SEED, ends["WEIGHT_BITS"], ends["ACT_BITS"], node.SHARED_DRAW)
