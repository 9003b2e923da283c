"""The config of a pretraining: its keys and defaults, checks of values, and the network that it describes."""

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
from ssql_det.pretrain.data import DataConfig
from ssql_det.pretrain.monitor import MonitorConfig
from ssql_det.pretrain.optim import OptimConfig
from ssql_det.quant import Bits, FixedBits, SampledBits, Scheme, parse_bit_widths
from ssql_det.quant.tracing import trace_pass
from ssql_det.ssl import METHODS, SSQL, Method, SimSiam
from ssql_det.ssl.augmentations import build_augmentation
from ssql_det.ssl.method import get_hyperparameters

IGNORED_KEYS = ("OUTPUT_DIR", "DEVICE", "DATA.WORKERS", "PERIODS.LOG", "PERIODS.CHECKPOINT", "PLUGINS")  # for weights
_FORMER_TOP_LEVEL_KEYS = ("DIM", "HIDDEN", "LAST_NORM", "MOMENTUM", "QUEUE", "TEMPERATURE", "CROSS")


def _get_keys(cls: type) -> dict[str, Any]:
    """The hyperparameters of a method, or of SSQL, as config keys with their defaults."""
    return {name.upper(): default for name, default in get_hyperparameters(cls).items()}


_DEFAULTS: dict[str, Any] = {  # in addition each method has a node, such as MOCO
    "PLUGINS": [],  # your modules, imported before the rest is read
    "METHOD": "simsiam",  # or byol, moco, simclr, or a plugin's
    "SSQL": {
        "ENABLED": True,  # False: the method alone
        "WEIGHT_BITS": [2, 8],  # lowest and highest; drawn anew in each step
        "ACT_BITS": [4, 8],
        "SHARED_DRAW": False,  # the same bits for weights and activations
        "FIXED_BITS": "",  # such as 4w4a: the same in each step
        **_get_keys(SSQL),  # QUANTIZE_PREDICTIONS, QUANTIZE_TARGETS, AUXILIARY, PER_RANK
        "SCHEME": "minmax",  # the published quantizers; others such as "weight=centred, act=mse"
    },
    "BACKBONE": "resnet50",
    "ZERO_INIT_RESIDUAL": False,
    "INIT": "",  # a checkpoint to start from, in any format that `ssql-det convert` reads
    "DATA": {
        "TRAIN": "",  # a folder, a text file of paths, or cifar10:FOLDER
        "RECIPE": "imagenet",  # the augmentation: imagenet, cifar or digits
        "SIZE": 0,  # of the views, in pixels; 0: the augmentation's own
        "WORKERS": 4,
        "MOST_BAD_IMAGES": 0,  # unreadable files to tolerate, in each process
        "CACHE_MB": 0,  # of memory for decoded images, in each worker
    },
    "OPTIM": {
        "NAME": "sgd",  # or lars
        "BATCH": 256,  # over all processes
        "EPOCHS": 100,
        "LR": 0.05,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 1e-4,
        "WARMUP_EPOCHS": 0.0,
        "PER_EPOCH": True,  # update LR once an epoch, as published; False: at each step
    },
    "AMP": False,  # bfloat16 autocast
    "SYNC_NORM": False,  # BatchNorm over all processes
    "MONITOR": {
        "PERIOD": 0,  # epochs between kNN evaluations; 0: none
        "DATA": "",  # labelled images with a train and a val split; "": those of DATA.TRAIN
        "BITS": ["FP", "2w4a"],
        "SCHEME": "minmax",
        "IMAGES": 2000,  # at most, of each split
    },
    "PERIODS": {"LOG": 20, "CHECKPOINT": 1},  # steps, epochs
    "DEVICE": "cuda",  # falls back to the CPU
    "SEED": 0,
    "OUTPUT_DIR": "./output/pretrain",
}
_MINIMUMS = {
    **dict.fromkeys(("OPTIM.BATCH", "OPTIM.EPOCHS", "PERIODS.LOG", "PERIODS.CHECKPOINT"), 1),
    **dict.fromkeys(("DATA.WORKERS", "DATA.SIZE", "DATA.CACHE_MB", "DATA.MOST_BAD_IMAGES", "MONITOR.PERIOD"), 0),
    **dict.fromkeys(("OPTIM.LR", "OPTIM.MOMENTUM", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_EPOCHS", "SEED"), 0),
    "MONITOR.IMAGES": 2,
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """The parsed config of a run. ``values`` are all keys as they are saved beside it.

    >>> config = read_config(None, ["METHOD", "moco", "MOCO.QUEUE", "1024"])
    >>> config.method.title, config.hyperparameters["queue"], config.optim.epochs
    ('MoCo v2', 1024, 100)
    """

    method: type[Method]
    hyperparameters: Mapping[str, Any]
    ssql: Mapping[str, Any] | None  # arguments of SSQL besides the method; None: the method alone
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
    """Every key with its default, including the keys of all methods."""
    return flatten_config(_build_defaults())


def get_renamed_keys() -> RenamedKeys:
    """Hyperparameters were once top-level keys, shared by all methods; now each method has its own."""
    nodes = _get_method_nodes()
    return {key: [f"{name}.{key}" for name, node in nodes.items() if key in node] for key in _FORMER_TOP_LEVEL_KEYS}


def _get_method_nodes() -> dict[str, dict[str, Any]]:
    return {name.upper(): _get_keys(METHODS.get(name)) for name in METHODS}


def _build_defaults() -> CfgNode:
    nodes = _get_method_nodes()
    for name in nodes.keys() & _DEFAULTS.keys():
        raise ValueError(f"a method cannot be called {name.lower()!r}: {name} is another config key")
    return CfgNode({**_DEFAULTS, **nodes})


def read_config(file: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The defaults, overridden by the file, overridden by ``KEY VALUE`` pairs."""
    import_config_plugins("PLUGINS", file, overrides)
    return _parse_config(load_config(_build_defaults(), file, overrides, get_renamed_keys()))


def _parse_config(cfg: CfgNode) -> PretrainConfig:
    _check_values(cfg)
    method, data = METHODS.get(cfg.METHOD), cfg.DATA
    other_methods = tuple(f"{name.upper()}." for name in METHODS if name != cfg.METHOD)
    return PretrainConfig(
        method=method,
        hyperparameters=_lowercase_keys(cfg[cfg.METHOD.upper()]),
        ssql=_parse_ssql(cfg.SSQL, cfg.SEED) if cfg.SSQL.ENABLED else None,
        backbone=cfg.BACKBONE,
        zero_init_residual=cfg.ZERO_INIT_RESIDUAL,
        init=cfg.INIT,
        data=DataConfig(
            train=data.TRAIN,
            augmentation=build_augmentation(data.RECIPE, data.SIZE or None),
            workers=data.WORKERS,
            max_bad_images=data.MOST_BAD_IMAGES,
            cache_mb=data.CACHE_MB,
        ),
        optim=OptimConfig(**_lowercase_keys(cfg.OPTIM)),
        amp=cfg.AMP,
        sync_norm=cfg.SYNC_NORM,
        monitor=_parse_monitor(cfg.MONITOR, data.TRAIN) if cfg.MONITOR.PERIOD else None,
        log_period=cfg.PERIODS.LOG,
        checkpoint_period=cfg.PERIODS.CHECKPOINT,
        device=cfg.DEVICE,
        seed=cfg.SEED,
        output_dir=cfg.OUTPUT_DIR,
        values={key: value for key, value in flatten_config(cfg).items() if not key.startswith(other_methods)},
    )


def _check_values(cfg: CfgNode) -> None:
    """Raise a ``UserError`` for numbers out of range; a method checks its own hyperparameters."""
    numbers = [key for key, value in flatten_config(cfg).items() if isinstance(value, (int, float))]
    check_minimums(cfg, dict.fromkeys(numbers, -math.inf) | _MINIMUMS)
    if cfg.OPTIM.MOMENTUM >= 1:
        raise UserError(f"OPTIM.MOMENTUM must be less than 1, got {cfg.OPTIM.MOMENTUM}")
    if cfg.SEED >= 1 << 32:
        raise UserError(f"SEED must be less than 2**32, got {cfg.SEED}")


def _lowercase_keys(node: CfgNode) -> dict[str, Any]:
    return {key.lower(): value for key, value in node.items()}


def _parse_monitor(node: CfgNode, train_data: str) -> MonitorConfig:
    return MonitorConfig(
        period=node.PERIOD,
        data=node.DATA or train_data,
        is_data_explicit=bool(node.DATA),
        widths=tuple(parse_bit_widths(",".join(map(str, node.BITS)))),
        scheme=Scheme.parse(node.SCHEME),
        images=node.IMAGES,
    )


def _parse_ssql(node: CfgNode, seed: int) -> dict[str, Any]:
    bits, scheme = _parse_bits(node, seed), Scheme.parse(node.SCHEME)
    scheme.check_bits(bits.bounds)
    return {"bits": bits, "scheme": scheme, **{name: node[name.upper()] for name in get_hyperparameters(SSQL)}}


def _parse_bits(node: CfgNode, seed: int) -> FixedBits | SampledBits:
    if node.FIXED_BITS:
        return FixedBits(Bits.parse(node.FIXED_BITS))
    intervals = {}
    for key in ("WEIGHT_BITS", "ACT_BITS"):
        if len(node[key]) != 2:
            raise UserError(
                f"SSQL.{key} must be the lowest and the highest bits, such as [2, 8]; got {list(node[key])}"
            )
        intervals[key] = tuple(node[key])
    return SampledBits(seed, intervals["WEIGHT_BITS"], intervals["ACT_BITS"], node.SHARED_DRAW)


def check_config(config: PretrainConfig, processes: int | None = None) -> None:
    """Raise a ``UserError`` before anything is read or written. ``processes``: how many there will be."""
    world, batch = world_size() if processes is None else processes, config.optim.batch
    if not config.data.train:
        raise UserError("DATA.TRAIN is empty; name the training images: DATA.TRAIN FOLDER")
    if 2 * world > batch:
        raise UserError(f"OPTIM.BATCH {batch} is too small: BatchNorm needs two images in each process")
    if batch % world:
        raise UserError(f"OPTIM.BATCH {batch} cannot be split over {world} processes; make it a multiple")
    if world > 1 and torch.cuda.is_available() and config.device != "cuda":
        raise UserError(f"DEVICE must be cuda for several processes, which use a GPU each; got {config.device!r}")


def build_network(config: PretrainConfig, load_init: bool = True) -> tuple[SSQL | Method, Backbone]:
    """The network to train and the backbone in it, with the weights of ``INIT`` if that is set and ``load_init``."""
    backbone = build_backbone(config.backbone, config.zero_init_residual)
    augmentation = config.data.augmentation
    require_savable(backbone)
    backbone.require_size(augmentation.size)
    if config.init and load_init:
        _load_init(config.init, backbone, augmentation.input)
    try:
        method = config.method(backbone, **config.hyperparameters)
        method.require_batch(config.optim.batch)
    except UserError as error:
        raise UserError(f"{config.values['METHOD'].upper()}: {error}") from None
    if config.ssql is None:
        return method, backbone
    network = SSQL(method, **config.ssql)
    trace_pass(method.encoder, network.quantization.points, torch.zeros(1, 3, augmentation.size, augmentation.size))
    return network, backbone


def _load_init(path: str, backbone: Backbone, input: InputFormat) -> None:
    pretrained = read_backbone(path, into=backbone)
    name, pretrained_input = pretrained.source.name, pretrained.metadata.input
    if pretrained_input is not None and pretrained_input.channels != input.channels:
        raise UserError(
            f"{name} was trained on {pretrained_input.channels} images, but pretraining uses {input.channels}; convert "
            f"it first: ssql-det convert {name} OUT.pth --to torchvision"
        )
    if pretrained_input not in (None, input):
        _logger.warning("%s was trained with the normalization %s, here it is %s", name, pretrained_input, input)


def build_metadata(config: PretrainConfig) -> Metadata:
    """The metadata of the backbone in a checkpoint. Its method names the switches of SSQL that are not published."""
    method = config.method.title
    if config.ssql is not None:
        method = "SSQL" if config.method is SimSiam else f"SSQL-{method}"
        values = {key: config.values[f"SSQL.{key}"] for key in _DEFAULTS["SSQL"] if key != "PER_RANK"}
        altered = [f"{key} {value}" for key, value in values.items() if value != _DEFAULTS["SSQL"][key]]
        method += f", altered: {', '.join(altered)}" if altered else ""
    input = config.data.augmentation.input
    return Metadata(input, stride_in_1x1=False, method=method, seed=config.seed, from_file=True)
