"""The keys of a pretraining config with their defaults, what is read from them, and the network that it describes.

What a config may not say would end in a traceback, or never, or in a backbone that is worth nothing.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ssql_det.backbones import Backbone, build_backbone
from ssql_det.convert import InputFormat, Metadata
from ssql_det.core.config import RenamedKeys, check_minimums, flatten_config, load_config
from ssql_det.core.distributed import world_size
from ssql_det.core.errors import UserError
from ssql_det.core.registry import import_config_plugins
from ssql_det.pretrain.checkpoint import read_backbone, require_savable
from ssql_det.pretrain.classifiers import MonitorConfig
from ssql_det.pretrain.data import DataConfig
from ssql_det.pretrain.optim import OptimConfig
from ssql_det.quant import Bits, FixedBits, SampledBits, Scheme, parse_widths
from ssql_det.quant.tracing import trace_pass
from ssql_det.ssl import METHODS, SSQL, Method, SimSiam
from ssql_det.ssl.augmentations import build_augmentation
from ssql_det.ssl.method import get_hyperparameters

IGNORED_KEYS = ("OUTPUT_DIR", "DEVICE", "DATA.WORKERS", "PERIODS.LOG", "PERIODS.CHECKPOINT", "PLUGINS")  # to weights
_FLAT = ("DIM", "HIDDEN", "LAST_NORM", "MOMENTUM", "QUEUE", "TEMPERATURE", "CROSS")  # of all methods, once


def _node(kind: type) -> dict[str, Any]:
    """The keys of a method, or of what wraps it: its hyperparameters, with its own defaults."""
    return {name.upper(): default for name, default in get_hyperparameters(kind).items()}


_KEYS: dict[str, Any] = {  # beside a node for each method, as MOCO
    "PLUGINS": [],  # modules of yours, imported before the rest is read
    "METHOD": "simsiam",  # or byol, moco, simclr, or what a plugin registers
    "SSQL": {
        "ENABLED": True,  # False: the method alone
        "WEIGHT_BITS": [2, 8],  # drawn anew each step, ends included
        "ACT_BITS": [4, 8],
        "SHARED_DRAW": False,
        "FIXED_BITS": "",  # as 4w4a: the same each step
        **_node(SSQL),  # QUANTIZE_PREDICTIONS, QUANTIZE_TARGETS, AUXILIARY, PER_RANK
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
_LEAST = {
    **dict.fromkeys(("OPTIM.BATCH", "OPTIM.EPOCHS", "PERIODS.LOG", "PERIODS.CHECKPOINT"), 1),
    **dict.fromkeys(("DATA.WORKERS", "DATA.SIZE", "DATA.CACHE_MB", "DATA.MOST_BAD_IMAGES", "MONITOR.PERIOD"), 0),
    **dict.fromkeys(("OPTIM.LR", "OPTIM.MOMENTUM", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_EPOCHS", "SEED"), 0),
    "MONITOR.IMAGES": 2,
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """All that a run is made of. ``values`` are the keys that it was read from, as they are saved beside it.

    >>> pretraining = read_config("configs/pretrain/mini_moco.yaml", ["OPTIM.EPOCHS", "3"])
    >>> pretraining.method, pretraining.hyperparameters["queue"], pretraining.optim.epochs
    (<class 'ssql_det.ssl.moco.MoCo'>, 1024, 3)
    """

    method: type[Method]
    hyperparameters: Mapping[str, Any]
    ssql: Mapping[str, Any] | None  # what SSQL is told beside the method; None: the method alone
    backbone: str
    zero_init_residual: bool
    init: str
    data: DataConfig
    optim: OptimConfig
    amp: bool
    sync_norm: bool
    monitor: MonitorConfig | None
    log_period: int  # steps
    checkpoint_period: int  # epochs
    device: str
    seed: int
    output_dir: str
    values: Mapping[str, Any] = field(repr=False)


def default_values() -> dict[str, Any]:
    """Every key, those of all methods among them, with its default."""
    return flatten_config(_defaults())


def moved_keys() -> RenamedKeys:
    """Hyperparameters were once keys of all methods together; now each method has those that it takes."""
    return {key: [f"{name}.{key}" for name, node in _method_nodes().items() if key in node] for key in _FLAT}


def _method_nodes() -> dict[str, dict[str, Any]]:
    return {name.upper(): _node(METHODS.get(name)) for name in METHODS}


def _defaults() -> CfgNode:
    nodes = _method_nodes()
    for name in nodes.keys() & _KEYS.keys():
        raise ValueError(f"a method cannot be called {name.lower()!r}: {name} is another key of a config")
    return CfgNode({**_KEYS, **nodes})


def read_config(file: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The defaults, the file over them, then ``KEY VALUE`` pairs."""
    import_config_plugins("PLUGINS", file, overrides)
    return _pretraining(load_config(_defaults(), file, overrides, moved_keys()))


def _pretraining(cfg: CfgNode) -> PretrainConfig:
    _check_values(cfg)
    method, data = METHODS.get(cfg.METHOD), cfg.DATA
    others = tuple(f"{name.upper()}." for name in METHODS if name != cfg.METHOD)
    return PretrainConfig(
        method=method,
        hyperparameters=_lowered(cfg[cfg.METHOD.upper()]),
        ssql=_ssql(cfg.SSQL, cfg.SEED) if cfg.SSQL.ENABLED else None,
        backbone=cfg.BACKBONE,
        zero_init_residual=cfg.ZERO_INIT_RESIDUAL,
        init=cfg.INIT,
        data=DataConfig(
            train=data.TRAIN,
            views=build_augmentation(data.RECIPE, data.SIZE or None),
            workers=data.WORKERS,
            most_bad_images=data.MOST_BAD_IMAGES,
            cache_mb=data.CACHE_MB,
        ),
        optim=OptimConfig(**_lowered(cfg.OPTIM)),
        amp=cfg.AMP,
        sync_norm=cfg.SYNC_NORM,
        monitor=_monitoring(cfg.MONITOR, data.TRAIN) if cfg.MONITOR.PERIOD else None,
        log_period=cfg.PERIODS.LOG,
        checkpoint_period=cfg.PERIODS.CHECKPOINT,
        device=cfg.DEVICE,
        seed=cfg.SEED,
        output_dir=cfg.OUTPUT_DIR,
        values={key: value for key, value in flatten_config(cfg).items() if not key.startswith(others)},
    )


def _check_values(cfg: CfgNode) -> None:
    """Refuse in one sentence what no run can be made of; what a method cannot take it refuses itself."""
    numbers = [key for key, value in flatten_config(cfg).items() if isinstance(value, (int, float))]
    check_minimums(cfg, dict.fromkeys(numbers, -math.inf) | _LEAST)
    if cfg.OPTIM.MOMENTUM >= 1:
        raise UserError(f"OPTIM.MOMENTUM must be less than 1, got {cfg.OPTIM.MOMENTUM}")
    if cfg.SEED >= 1 << 32:
        raise UserError(f"SEED must be less than 2**32, got {cfg.SEED}")


def _lowered(node: CfgNode) -> dict[str, Any]:
    return {key.lower(): value for key, value in node.items()}


def _monitoring(node: CfgNode, images: str) -> MonitorConfig:
    return MonitorConfig(
        period=node.PERIOD,
        data=node.DATA or images,
        widths=tuple(parse_widths(",".join(map(str, node.BITS)))),
        scheme=Scheme.parse(node.SCHEME),
        images=node.IMAGES,
    )


def _ssql(node: CfgNode, seed: int) -> dict[str, Any]:
    bits, scheme = _bits(node, seed), Scheme.parse(node.SCHEME)
    scheme.check_bits(bits.bounds)
    return {"bits": bits, "scheme": scheme, **{name: node[name.upper()] for name in get_hyperparameters(SSQL)}}


def _bits(node: CfgNode, seed: int) -> FixedBits | SampledBits:
    if node.FIXED_BITS:
        return FixedBits(Bits.parse(node.FIXED_BITS))
    ends = {}
    for key in ("WEIGHT_BITS", "ACT_BITS"):
        if len(node[key]) != 2:
            raise UserError(f"SSQL.{key} is the least and the most, as [2, 8]; got {list(node[key])}")
        ends[key] = tuple(node[key])
    return SampledBits(seed, ends["WEIGHT_BITS"], ends["ACT_BITS"], node.SHARED_DRAW)


def check(pretraining: PretrainConfig, processes: int | None = None) -> None:
    """Refuse in one sentence, before anything is read or written; so many ``processes`` are there, or will be."""
    world, batch = world_size() if processes is None else processes, pretraining.optim.batch
    if not pretraining.data.train:
        raise UserError("DATA.TRAIN is empty; say which images: DATA.TRAIN FOLDER")
    if 2 * world > batch:
        raise UserError(f"OPTIM.BATCH {batch} is too small: a BatchNorm needs two images a process")
    if batch % world:
        raise UserError(f"OPTIM.BATCH {batch} cannot be shared by {world} processes; make it a multiple")
    if world > 1 and torch.cuda.is_available() and pretraining.device != "cuda":
        raise UserError(f"several processes have a GPU each: DEVICE is cuda for them, got {pretraining.device!r}")


def build_network(pretraining: PretrainConfig, begins: bool = True) -> tuple[SSQL | Method, Backbone]:
    """What is trained, and the backbone in it, from scratch, or where it ``begins`` from ``INIT``.

    >>> network, backbone = build_network(read_config("configs/pretrain/cifar10_r18_ssql.yaml"))
    """
    backbone, views = build_backbone(pretraining.backbone, pretraining.zero_init_residual), pretraining.data.views
    require_savable(backbone)
    backbone.require_size(views.size)
    if pretraining.init and begins:
        _begin_with(pretraining.init, backbone, views.input)
    try:
        method = pretraining.method(backbone, **pretraining.hyperparameters)
        method.require_batch(pretraining.optim.batch)
    except UserError as mistake:
        raise UserError(f"{pretraining.values['METHOD'].upper()}: {mistake}") from None
    if pretraining.ssql is None:
        return method, backbone
    network = SSQL(method, **pretraining.ssql)
    trace_pass(method.encoder, network.quantization.points, torch.zeros(1, 3, views.size, views.size))
    return network, backbone


def _begin_with(path: str, backbone: Backbone, images: InputFormat) -> None:
    pretrained = read_backbone(path, into=backbone)
    name, theirs = pretrained.source.name, pretrained.facts.input
    if theirs is not None and theirs.channels != images.channels:
        raise UserError(
            f"{name} was trained on {theirs.channels} images and is fed {images.channels} here; turn it "
            f"first: ssql-det convert {name} OUT.pth --to torchvision"
        )
    if theirs not in (None, images):
        _logger.warning("%s was trained on images normalized by %s, here it is %s", name, theirs, images)


def build_metadata(pretraining: PretrainConfig) -> Metadata:
    """What whoever uses the backbone has to know of it."""
    method = pretraining.method.title
    if pretraining.ssql is not None:
        method = "SSQL" if pretraining.method is SimSiam else f"SSQL-{method}"
        now = {key: pretraining.values[f"SSQL.{key}"] for key in _KEYS["SSQL"] if key != "PER_RANK"}
        altered = [f"{key} {value}" for key, value in now.items() if value != _KEYS["SSQL"][key]]
        method += f", altered: {', '.join(altered)}" if altered else ""
    images, seed = pretraining.data.views.input, pretraining.seed
    return Metadata(images, stride_in_1x1=False, method=method, seed=seed, from_file=True)
