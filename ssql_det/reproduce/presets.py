"""What is reproduced, at which size, and what a user may say of it. Minutes are estimates of one lane: measured for
``mini`` on a machine of two cores that had nothing else to do, guessed for the others.

=====  =======================================================================================================
mini   two CPU cores, minutes: the narrow ResNet on toy data, one seed
small  one modern GPU: ResNet-18 on more toy data, three seeds
paper  the published recipes on CIFAR-10, ImageNet, VOC and COCO; what was never released is custom (docs/detection.md)
=====  =======================================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.report.published import load_published_table
from ssql_det.report.table_sources import format_bits_option, get_source
from ssql_det.reproduce.experiments import (
    RANDOM,
    SIMSIAM,
    SSQL,
    DetectorExperiment,
    Experiment,
    ProbeExperiment,
    ablation_pretrainings,
    pretraining_from_config,
    published_pretrainings,
    toy_pretrainings,
)
from ssql_det.toydata.dataset import ToyDataSettings

MINIMUMS = {"scenes": 24, "crops": 400, "iterations": 4, "calibration": 4}  # of a budget however small
_DETECT = "configs/detection"
_IMAGENET = "configs/pretrain/imagenet"


@dataclass(frozen=True)
class Preset:
    """``data`` are toy data to make, or ``None`` where the real ones are used. Where ``pretrains_each_seed`` is false,
    all seeds of a detector begin with one backbone, and what is probed has one seed if no number is asked for."""

    name: str
    data: ToyDataSettings | None
    parts: tuple[Experiment, ...]
    bits: str
    seeds: int
    pretrains_each_seed: bool = True
    is_measured: bool = False  # its minutes
    is_for_gpu: bool = True
    score: float | None = None  # the least that is drawn; the command's own where it is not given

    @property
    def tables(self) -> tuple[int, ...]:
        return tuple(sorted({part.table for part in self.parts}))


@dataclass(frozen=True)
class Options:
    """What a user may say. ``checkpoints``: methods and files; ``budget``: the share of toy data and training."""

    out: Path
    tables: tuple[int, ...] = (6, 7)  # those of detectors
    methods: tuple[str, ...] = ()
    bits: str = ""
    seeds: int | None = None
    checkpoints: tuple[tuple[str, str], ...] = ()
    budget: float = 1.0
    num_gpus: int = 1
    imagenet: Path = Path("datasets/imagenet")
    cifar10: Path = Path("datasets")
    on_gpu: bool = False

    def images(self, data: str) -> str:
        """ImageNet or CIFAR-10 as commands take it.

        >>> Options(Path("runs/paper")).images("cifar10")
        'cifar10:datasets'
        """
        return {"imagenet": str(self.imagenet), "cifar10": f"cifar10:{self.cifar10}"}[data]


def count_seeds(part: Experiment, preset: Preset, choices: Options) -> int:
    """Published backbones are one of each method, unless more are asked for."""
    is_one = isinstance(part, ProbeExperiment) and not preset.pretrains_each_seed
    return choices.seeds or (1 if is_one else preset.seeds)


def get_datasets_root() -> Path:
    """Where the real data sets are."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


_VOC_IMAGE, _COCO_IMAGE = "VOC2007/JPEGImages/{:06d}.jpg", "coco/val2017/{:012d}.jpg"
_MINI_DATA = ToyDataSettings(scenes=1000, crops=10000, least_side=128, most_side=128, difficulty=0.0)
_SMALL_DATA = ToyDataSettings(scenes=4000, crops=40000, least_side=128, most_side=256, difficulty=0.25)
_PUBLISHED, _WITH_TWO = "FP,8,6,5,4", "FP,8,6,5,4,2w4a"


def _toy_detectors(
    preset: str, network: str, c4: tuple[float, float, float], fpn: tuple[float, float, float]
) -> tuple[Experiment, ...]:
    methods = {RANDOM: None, SIMSIAM: toy_pretrainings(preset)[SIMSIAM], SSQL: toy_pretrainings(preset)[SSQL]}
    voc, coco = ("toy_voc_2007_test", methods), ("toy_coco_2017_val", methods)
    return (
        DetectorExperiment("c4", 6, *voc, f"{_DETECT}/toy_voc_{network}_c4.yaml", 64, *c4, _VOC_IMAGE),
        DetectorExperiment("fpn", 7, *coco, f"{_DETECT}/toy_coco_{network}_fpn.yaml", 64, *fpn, _COCO_IMAGE),
    )


def _toy_probes(preset: str, minutes: float) -> tuple[Experiment, ...]:
    """Table 1 with all eight methods, so that each stands beside SSQL over it."""
    all_methods = toy_pretrainings(preset)
    of_12 = {method: all_methods[method] for method in load_published_table(12).methods}
    methods = {1: all_methods, 8: ablation_pretrainings(preset), 12: of_12}
    return tuple(ProbeExperiment(f"table{number}", number, "crops", each, minutes) for number, each in methods.items())


def _published_probes(table: int, data: str, minutes: Mapping[str, float]) -> tuple[Experiment, ...]:
    """One for each network of a table, as published. ``minutes`` are of one bit-width."""
    widths, asked = load_published_table(table).bit_widths, ("linear", "--protocol", "published")
    return tuple(
        ProbeExperiment(
            f"table{table}-{network.lower()}",
            table,
            get_source(table).dataset,
            published_pretrainings(table, network),
            minutes=each * len(widths),
            bits=format_bits_option(widths),
            arguments=asked,
            network=network,
            data=data,
        )
        for network, each in minutes.items()
    )


_VOC = {
    RANDOM: None,
    "BYOL": pretraining_from_config(f"{_IMAGENET}_r18_byol.yaml"),
    SIMSIAM: pretraining_from_config(f"{_IMAGENET}_r18_simsiam.yaml"),
    "SimSiam-200ep": pretraining_from_config(f"{_IMAGENET}_r18_simsiam_200ep.yaml"),
    SSQL: pretraining_from_config(f"{_IMAGENET}_r18_ssql.yaml"),
    "SSQL-200ep (ours)": pretraining_from_config(f"{_IMAGENET}_r18_ssql_200ep.yaml"),
}
_COCO = {
    "BYOL": pretraining_from_config(f"{_IMAGENET}_r50_byol.yaml"),
    SIMSIAM: pretraining_from_config(f"{_IMAGENET}_r50_simsiam.yaml"),
    SSQL: pretraining_from_config(f"{_IMAGENET}_r50_ssql.yaml"),
}
_PAPER = (
    DetectorExperiment(
        *("c4", 6, "voc_2007_test", _VOC, f"{_DETECT}/voc_r18_c4.yaml", 256, 180, 20, 300),
        *(_VOC_IMAGE, (1, 4)),
    ),
    DetectorExperiment(
        *("fpn", 7, "coco_2017_val", _COCO, f"{_DETECT}/coco_mask_r50_fpn.yaml", 256, 750, 40, 500),
        *(_COCO_IMAGE, (139, 285)),
    ),
    *_published_probes(1, "cifar10", {"ResNet-18": 15, "ResNet-50": 30}),
    *_published_probes(3, "imagenet", {"ResNet-18": 600, "ResNet-50": 900}),
    *_published_probes(8, "cifar10", {"ResNet-34": 20}),
    *_published_probes(12, "cifar10", {"ResNet-18": 15}),
)

PRESETS = {
    each.name: each
    for each in (
        Preset(
            "mini",
            _MINI_DATA,
            (*_toy_detectors("mini", "narrow", (1.3, 0.4, 16), (1.1, 0.5, 28)), *_toy_probes("mini", 0.4)),
            _WITH_TWO,
            seeds=1,
            score=0.3,
            is_measured=True,
            is_for_gpu=False,
        ),
        Preset(
            "small",
            _SMALL_DATA,
            (*_toy_detectors("small", "r18", (0.8, 0.4, 200), (0.8, 0.5, 300)), *_toy_probes("small", 0.5)),
            _WITH_TWO,
            seeds=3,
            score=0.3,
        ),
        Preset("paper", None, _PAPER, _PUBLISHED, seeds=5, pretrains_each_seed=False),
    )
}


def get_preset(name: str) -> Preset:
    """
    >>> get_preset("mini").tables
    (1, 6, 7, 8, 12)
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}{did_you_mean(name, PRESETS)} (known: {', '.join(PRESETS)})")
    return PRESETS[name]
