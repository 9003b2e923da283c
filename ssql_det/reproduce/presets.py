"""The presets of ``ssql-det reproduce``, and the options that a user may set. Minutes are estimates for one job:
measured for ``mini`` on an idle machine with two cores, guessed for the others.

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
    make_ablation_pretrainings,
    make_published_pretrainings,
    make_recipe,
    make_toy_pretrainings,
)
from ssql_det.toydata.dataset import ToyDataSettings

MINIMUMS = {"scenes": 24, "crops": 400, "iterations": 4, "calibration_images": 4}  # for any budget
_DETECTION_CONFIGS = "configs/detection"
_IMAGENET_CONFIGS = "configs/pretrain/imagenet"


@dataclass(frozen=True)
class Preset:
    """``data`` is the toy data to make, or ``None`` where real datasets are used.

    Unless ``pretrains_each_seed``, all seeds of a detector start from one backbone, and probes default to one seed.
    """

    name: str
    data: ToyDataSettings | None
    experiments: tuple[Experiment, ...]
    bits: str
    seeds: int
    pretrains_each_seed: bool = True
    has_measured_minutes: bool = False
    is_for_gpu: bool = True
    score: float | None = None  # the lowest score of a drawn detection; None: the default of ssql-det predict

    @property
    def tables(self) -> tuple[int, ...]:
        return tuple(sorted({experiment.table for experiment in self.experiments}))


@dataclass(frozen=True)
class Options:
    """What a user may set. ``checkpoints``: methods and files; ``budget``: the share of toy data and training."""

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
    has_gpu: bool = False

    def get_data_option(self, dataset: str) -> str:
        """ImageNet or CIFAR-10 as commands take it.

        >>> Options(Path("runs/paper")).get_data_option("cifar10")
        'cifar10:datasets'
        """
        return {"imagenet": str(self.imagenet), "cifar10": f"cifar10:{self.cifar10}"}[dataset]


def count_seeds(experiment: Experiment, preset: Preset, options: Options) -> int:
    has_one_backbone = isinstance(experiment, ProbeExperiment) and not preset.pretrains_each_seed
    return options.seeds or (1 if has_one_backbone else preset.seeds)


def get_datasets_root() -> Path:
    """The folder of the real datasets."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


_VOC_IMAGE, _COCO_IMAGE = "VOC2007/JPEGImages/{:06d}.jpg", "coco/val2017/{:012d}.jpg"
_MINI_DATA = ToyDataSettings(scenes=1000, crops=10000, least_side=128, most_side=128, difficulty=0.0)
_SMALL_DATA = ToyDataSettings(scenes=4000, crops=40000, least_side=128, most_side=256, difficulty=0.25)
_PUBLISHED_BITS, _TOY_BITS = "FP,8,6,5,4", "FP,8,6,5,4,2w4a"


def _make_toy_detectors(
    preset: str, network: str, c4_cost: tuple[float, float, float], fpn_cost: tuple[float, float, float]
) -> tuple[Experiment, ...]:
    """Costs are minutes of training, minutes of the sweep, and megabytes."""
    pretrainings = make_toy_pretrainings(preset)
    methods = {RANDOM: None, SIMSIAM: pretrainings[SIMSIAM], SSQL: pretrainings[SSQL]}
    voc, coco = ("toy_voc_2007_test", methods), ("toy_coco_2017_val", methods)
    c4, fpn = (f"{_DETECTION_CONFIGS}/toy_{name}.yaml" for name in (f"voc_{network}_c4", f"coco_{network}_fpn"))
    return (
        DetectorExperiment("c4", 6, *voc, c4, 64, *c4_cost, _VOC_IMAGE),
        DetectorExperiment("fpn", 7, *coco, fpn, 64, *fpn_cost, _COCO_IMAGE),
    )


def _make_toy_probes(preset: str, minutes: float) -> tuple[Experiment, ...]:
    """Table 1 gets all eight methods, so that each is beside SSQL over it."""
    pretrainings = make_toy_pretrainings(preset)
    table_12 = {method: pretrainings[method] for method in load_published_table(12).methods}
    methods = {1: pretrainings, 8: make_ablation_pretrainings(preset), 12: table_12}
    return tuple(ProbeExperiment(f"table{number}", number, "crops", each, minutes) for number, each in methods.items())


def _make_published_probes(table: int, data: str, minutes: Mapping[str, float]) -> tuple[Experiment, ...]:
    """One for each network of a table, with the published protocol. ``minutes`` are for one bit-width."""
    widths = load_published_table(table).bit_widths
    return tuple(
        ProbeExperiment(
            f"table{table}-{network.lower()}",
            table,
            get_source(table).dataset,
            make_published_pretrainings(table, network),
            minutes=network_minutes * len(widths),
            bits=format_bits_option(widths),
            arguments=("linear", "--protocol", "published"),
            network=network,
            data=data,
        )
        for network, network_minutes in minutes.items()
    )


_VOC_METHODS = {
    RANDOM: None,
    "BYOL": make_recipe(f"{_IMAGENET_CONFIGS}_r18_byol.yaml"),
    SIMSIAM: make_recipe(f"{_IMAGENET_CONFIGS}_r18_simsiam.yaml"),
    "SimSiam-200ep": make_recipe(f"{_IMAGENET_CONFIGS}_r18_simsiam_200ep.yaml"),
    SSQL: make_recipe(f"{_IMAGENET_CONFIGS}_r18_ssql.yaml"),
    "SSQL-200ep (ours)": make_recipe(f"{_IMAGENET_CONFIGS}_r18_ssql_200ep.yaml"),
}
_COCO_METHODS = {
    "BYOL": make_recipe(f"{_IMAGENET_CONFIGS}_r50_byol.yaml"),
    SIMSIAM: make_recipe(f"{_IMAGENET_CONFIGS}_r50_simsiam.yaml"),
    SSQL: make_recipe(f"{_IMAGENET_CONFIGS}_r50_ssql.yaml"),
}
_PUBLISHED_EXPERIMENTS = (
    DetectorExperiment(
        *("c4", 6, "voc_2007_test", _VOC_METHODS, f"{_DETECTION_CONFIGS}/voc_r18_c4.yaml", 256, 180, 20, 300),
        *(_VOC_IMAGE, (1, 4)),
    ),
    DetectorExperiment(
        *("fpn", 7, "coco_2017_val", _COCO_METHODS, f"{_DETECTION_CONFIGS}/coco_mask_r50_fpn.yaml", 256, 750, 40, 500),
        *(_COCO_IMAGE, (139, 285)),
    ),
    *_make_published_probes(1, "cifar10", {"ResNet-18": 15, "ResNet-50": 30}),
    *_make_published_probes(3, "imagenet", {"ResNet-18": 600, "ResNet-50": 900}),
    *_make_published_probes(8, "cifar10", {"ResNet-34": 20}),
    *_make_published_probes(12, "cifar10", {"ResNet-18": 15}),
)

PRESETS = {
    each.name: each
    for each in (
        Preset(
            "mini",
            _MINI_DATA,
            (*_make_toy_detectors("mini", "narrow", (1.3, 0.4, 16), (1.1, 0.5, 28)), *_make_toy_probes("mini", 0.4)),
            _TOY_BITS,
            seeds=1,
            score=0.3,
            has_measured_minutes=True,
            is_for_gpu=False,
        ),
        Preset(
            "small",
            _SMALL_DATA,
            (*_make_toy_detectors("small", "r18", (0.8, 0.4, 200), (0.8, 0.5, 300)), *_make_toy_probes("small", 0.5)),
            _TOY_BITS,
            seeds=3,
            score=0.3,
        ),
        Preset("paper", None, _PUBLISHED_EXPERIMENTS, _PUBLISHED_BITS, seeds=5, pretrains_each_seed=False),
    )
}


def get_preset(name: str) -> Preset:
    """
    >>> get_preset("mini").tables
    (1, 6, 7, 8, 12)
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)} (known: {', '.join(PRESETS)})")
    return PRESETS[name]
