"""The config of a pretraining: its keys and defaults, checks of values, and the network that it describes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ssql_det.backbones import Backbone, build_backbone
from ssql_det.convert import InputFormat, Metadata
from ssql_det.core.config import RenamedKeys, flatten_config, load_config
from ssql_det.core.config_values import Bounds, BoundsByKey
from ssql_det.core.distributed import world_size
from ssql_det.core.errors import UserError
from ssql_det.core.registry import import_config_plugins
from ssql_det.pretrain.checkpoint import read_backbone, require_savable
from ssql_det.pretrain.data import DataConfig
from ssql_det.pretrain.monitor import MonitorConfig
from ssql_det.pretrain.optim import OptimConfig
from ssql_det.quant import Scheme, parse_bit_widths
from ssql_det.quant.bits import read_schedule
from ssql_det.quant.tracing import trace_pass
from ssql_det.quant.training import QuantizerOptim, check_trainable
from ssql_det.ssl import METHODS, SSQL, Method, SimSiam
from ssql_det.ssl.augmentations import build_augmentation
from ssql_det.ssl.method import get_hyperparameters

# Keys that do not change a result (the trained weights), so a resumed run may change them. PLUGINS only registers what
# other keys, such as METHOD, select.
IGNORED_KEYS = ("OUTPUT_DIR", "DEVICE", "DATA.WORKERS", "PERIODS.LOG", "PERIODS.CHECKPOINT", "PLUGINS")
# Hyperparameters that older configs have at top level, as DIM instead of SIMSIAM.DIM.
_FORMER_TOP_LEVEL_KEYS = ("DIM", "HIDDEN", "LAST_NORM", "MOMENTUM", "QUEUE", "TEMPERATURE", "CROSS")


def _get_keys(cls: type) -> dict[str, Any]:
    """The hyperparameters of a method, or of SSQL, as config keys with their defaults."""
    return {name.upper(): default for name, default in get_hyperparameters(cls).items()}


_DEFAULTS: dict[str, Any] = {  # each method adds a node with its hyperparameters, such as MOCO
    "PLUGINS": [],  # modules of yours, imported before the other keys are read
    "METHOD": "simsiam",  # or byol, moco, simclr, or a method of a plugin
    "SSQL": {
        "ENABLED": True,  # False: train the method without SSQL
        "WEIGHT_BITS": [2, 8],  # lowest and highest; a step may draw either, or one between them
        "ACT_BITS": [4, 8],
        "SHARED_DRAW": False,  # the same draw for weights and activations; WEIGHT_BITS must equal ACT_BITS
        "FIXED_BITS": "",  # such as 4w4a: use these bit-widths in every step
        **_get_keys(SSQL),  # QUANTIZE_PREDICTIONS, QUANTIZE_TARGETS, AUXILIARY, PER_RANK
        "SCHEME": "minmax",  # the published quantizers; or others, such as "weight=centred, act=mse"
        "QUANTIZER_LR_FACTOR": 1.0,  # times OPTIM.LR, for trained parameters of quantizers, as those of act=pact
        "QUANTIZER_WEIGHT_DECAY": 0.0,  # of these parameters; of act=pact: the regularization of its clips
    },
    "BACKBONE": "resnet50",
    "ZERO_INIT_RESIDUAL": False,
    "INIT": "",  # a checkpoint to start from, in any format that `ssql-det convert` reads; "": random weights
    "DATA": {
        "TRAIN": "",  # a folder, a text file of paths, or cifar10:FOLDER
        "RECIPE": "imagenet",  # the augmentation: imagenet, cifar or digits
        "SIZE": 0,  # of the views, in pixels; 0: the default size of the augmentation
        "WORKERS": 4,  # processes that load images, on each machine; its ranks share them
        "MOST_BAD_IMAGES": 0,  # how many unreadable files to tolerate at most, in each process
        "CACHE_MB": 0,  # memory for decoded images, in each worker; 0: none are kept
    },
    "OPTIM": {
        "NAME": "sgd",  # or lars
        "BATCH": 256,  # over all processes
        "RANKS": 0,  # how many GPUs the recipe is for; a process takes the parts of several. 0: as many as processes
        "EPOCHS": 100,
        "LR": 0.05,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 1e-4,
        "WARMUP_EPOCHS": 0.0,
        "PER_EPOCH": True,  # after the warm-up update LR once an epoch, as published; False: at each step
        "LEAST_STEPS": 0,  # above 0: EPOCHS are raised to have so many steps, BATCH is lowered to the number of images
    },
    "AMP": False,  # bfloat16 autocast, about twice as fast on GPUs and on CPUs with avx512_bf16
    "MEMORY_FORMAT": "auto",  # channels_last or contiguous; auto: channels_last on CPUs and GPUs
    "SYNC_NORM": False,  # BatchNorm over all processes
    "MONITOR": {
        "PERIOD": 0,  # epochs between kNN evaluations; 0: none
        "DATA": "",  # labelled images with a train and a val split; "": the images of DATA.TRAIN
        "BITS": ["FP", "2w4a"],
        "SCHEME": "minmax",
        "IMAGES": 2000,  # at most this many images of each split
    },
    "PERIODS": {"LOG": 20, "CHECKPOINT": 1},  # steps, epochs
    "DEVICE": "cuda",  # falls back to the CPU
    "SEED": 0,
    "OUTPUT_DIR": "./output/pretrain",
}
BOUNDS: BoundsByKey = {  # a method checks its own hyperparameters
    "PLUGINS": Bounds(like=["module"]),
    "SSQL.QUANTIZER_*": Bounds(least=0),
    "DATA.WORKERS": Bounds(least=0, most=1 << 10),
    "DATA.SIZE": Bounds(least=0, most=1 << 12),
    "DATA.*": Bounds(least=0),
    "OPTIM.BATCH": Bounds(least=1, most=1 << 20),
    "OPTIM.EPOCHS": Bounds(least=1),
    "OPTIM.RANKS": Bounds(least=0, most=1 << 10),
    "OPTIM.MOMENTUM": Bounds(least=0, most=0.9999),
    "OPTIM.*": Bounds(least=0),
    "MONITOR.BITS": Bounds(like=["8w8a", 8]),
    "MONITOR.IMAGES": Bounds(least=2),
    "MONITOR.*": Bounds(least=0),
    "PERIODS.*": Bounds(least=1),
    "SEED": Bounds(least=0, most=(1 << 32) - 1),
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """The parsed config of a run. ``values``: what is saved in the output folder, all keys except those of other
    methods.

    >>> config = read_config(None, ["METHOD", "moco", "MOCO.QUEUE", "1024"])
    >>> config.method.title, config.hyperparameters["queue"], config.optim.epochs
    ('MoCo v2', 1024, 100)
    """

    method: type[Method]
    hyperparameters: Mapping[str, Any]
    ssql: Mapping[str, Any] | None  # arguments of SSQL except the method; None: train without SSQL
    quantizer_optim: QuantizerOptim
    backbone: str
    zero_init_residual: bool
    init: str
    data: DataConfig
    optim: OptimConfig
    amp: bool
    memory_format: str
    sync_norm: bool
    monitor: MonitorConfig | None  # None: no kNN evaluation
    log_period: int  # steps
    checkpoint_period: int  # epochs
    device: str
    seed: int
    output_dir: str
    values: Mapping[str, Any] = field(repr=False)


def default_values() -> dict[str, Any]:
    """Every key with its default, including the keys of all methods."""
    return flatten_config(build_defaults())


def get_renamed_keys() -> RenamedKeys:
    """The new names of keys in older configs, where hyperparameters were top-level keys shared by all methods."""
    nodes = _get_method_nodes()
    return {key: [f"{name}.{key}" for name, node in nodes.items() if key in node] for key in _FORMER_TOP_LEVEL_KEYS}


def _get_method_nodes() -> dict[str, dict[str, Any]]:
    return {name.upper(): _get_keys(METHODS.get(name)) for name in METHODS}


def build_defaults() -> CfgNode:
    nodes = _get_method_nodes()
    for name in nodes.keys() & _DEFAULTS.keys():
        raise ValueError(f"a method cannot be called {name.lower()!r}: {name} is already a config key")
    return CfgNode({**_DEFAULTS, **nodes})


def read_config(file: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The defaults, overridden by the file and then by ``KEY VALUE`` pairs."""
    import_config_plugins("PLUGINS", file, overrides)
    return _parse_config(load_config(build_defaults(), file, overrides, get_renamed_keys(), BOUNDS))


def _parse_config(cfg: CfgNode) -> PretrainConfig:
    method, data = METHODS.get(cfg.METHOD), cfg.DATA
    other_methods = tuple(f"{name.upper()}." for name in METHODS if name != cfg.METHOD)
    return PretrainConfig(
        method=method,
        hyperparameters=_lowercase_keys(cfg[cfg.METHOD.upper()]),
        ssql=_parse_ssql(cfg.SSQL, cfg.SEED) if cfg.SSQL.ENABLED else None,
        quantizer_optim=QuantizerOptim(cfg.SSQL.QUANTIZER_LR_FACTOR, cfg.SSQL.QUANTIZER_WEIGHT_DECAY),
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
        memory_format=cfg.MEMORY_FORMAT,
        sync_norm=cfg.SYNC_NORM,
        monitor=_parse_monitor(cfg.MONITOR, data.TRAIN) if cfg.MONITOR.PERIOD else None,
        log_period=cfg.PERIODS.LOG,
        checkpoint_period=cfg.PERIODS.CHECKPOINT,
        device=cfg.DEVICE,
        seed=cfg.SEED,
        output_dir=cfg.OUTPUT_DIR,
        values={key: value for key, value in flatten_config(cfg).items() if not key.startswith(other_methods)},
    )


def _lowercase_keys(node: CfgNode) -> dict[str, Any]:
    return {key.lower(): value for key, value in node.items()}


def _parse_monitor(node: CfgNode, train_data: str) -> MonitorConfig:
    bit_widths, scheme = parse_bit_widths(",".join(map(str, node.BITS))), Scheme.parse(node.SCHEME)
    scheme.check_learns_nothing(bit_widths)
    return MonitorConfig(
        period=node.PERIOD,
        data=node.DATA or train_data,
        is_data_explicit=bool(node.DATA),
        bit_widths=tuple(bit_widths),
        scheme=scheme,
        max_images=node.IMAGES,
    )


def _parse_ssql(node: CfgNode, seed: int) -> dict[str, Any]:
    bits, scheme = read_schedule(node, "SSQL", seed), Scheme.parse(node.SCHEME)
    check_trainable(scheme, bits.bounds, "SSQL.SCHEME: SSQL cannot train with")
    return {"bits": bits, "scheme": scheme, **{name: node[name.upper()] for name in get_hyperparameters(SSQL)}}


def check_config(config: PretrainConfig, num_processes: int | None = None) -> None:
    """Raise a ``UserError`` for a config that cannot run on ``num_processes``; None: the current number."""
    num_processes, batch = world_size() if num_processes is None else num_processes, config.optim.batch
    if not config.data.train:
        raise UserError("DATA.TRAIN is empty; name the training images: DATA.TRAIN FOLDER")
    if 2 * num_processes > batch:
        raise UserError(
            f"OPTIM.BATCH {batch} is too small: BatchNorm needs two images in each process; "
            f"use at least {2 * num_processes}"
        )
    if batch % num_processes:
        raise UserError(
            f"OPTIM.BATCH {batch} cannot be split over {num_processes} processes; use a multiple of {num_processes}"
        )
    if config.optim.ranks and (batch % config.optim.ranks or batch < 2 * config.optim.ranks):
        raise UserError(
            f"OPTIM.BATCH {batch} cannot be split over OPTIM.RANKS {config.optim.ranks}, at least two images for each"
        )
    if num_processes > 1 and torch.cuda.is_available() and config.device != "cuda":
        raise UserError(f"DEVICE must be cuda for several processes, each of which uses a GPU; got {config.device!r}")


def build_network(config: PretrainConfig, load_init: bool = True) -> tuple[SSQL | Method, Backbone]:
    """The network to train and its backbone, with the weights of ``INIT`` if ``INIT`` is set and ``load_init``."""
    backbone = build_backbone(config.backbone, config.zero_init_residual)
    augmentation = config.data.augmentation
    require_savable(backbone)
    backbone.require_size(augmentation.size)
    if config.init and load_init:
        _load_init(config.init, backbone, augmentation.input_format)
    try:
        method = config.method(backbone, **config.hyperparameters)
        method.require_batch(config.optim.batch)
    except UserError as error:
        raise UserError(f"{config.values['METHOD'].upper()}: {error}") from None
    if config.ssql is None:
        return method, backbone
    network = SSQL(method, **config.ssql)
    # Raises an error if a forward pass does not reach a quantization point.
    trace_pass(method.encoder, network.quantization.points, torch.zeros(1, 3, augmentation.size, augmentation.size))
    return network, backbone


def _load_init(path: str, backbone: Backbone, input_format: InputFormat) -> None:
    pretrained = read_backbone(path, into=backbone)
    name, pretrained_input = pretrained.source.name, pretrained.metadata.input
    channel_order = input_format.channels
    if pretrained_input is not None and pretrained_input.channels != channel_order:
        raise UserError(
            f"{name} was trained on {pretrained_input.channels} images, but pretraining uses "
            f"{channel_order}; convert it first: ssql-det convert {name} OUT.pth --to torchvision"
        )
    if pretrained_input not in (None, input_format):
        _logger.warning("%s was trained with the input format %s, now it is %s", name, pretrained_input, input_format)


def build_metadata(config: PretrainConfig) -> Metadata:
    """The metadata of a checkpoint's backbone. ``method`` lists the keys of SSQL that differ from their defaults."""
    method = config.method.title
    if config.ssql is not None:
        method = "SSQL" if config.method is SimSiam else f"SSQL-{method}"
        # PER_RANK is never listed: it says whether each process observes activations of its own images only, and the
        # published code did, so neither value departs from it with one process.
        values = {key: config.values[f"SSQL.{key}"] for key in _DEFAULTS["SSQL"] if key != "PER_RANK"}
        altered = [f"{key} {value}" for key, value in values.items() if value != _DEFAULTS["SSQL"][key]]
        method += f", altered: {', '.join(altered)}" if altered else ""
    input_format = config.data.augmentation.input_format
    return Metadata(input_format, stride_in_1x1=False, method=method, seed=config.seed, is_input_known=True)
