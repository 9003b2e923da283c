"""The presets of ``ssql-det reproduce``, and the options that a user may set.

=====  =======================================================================================================
mini   for two CPU cores, takes minutes: the narrow ResNet on toy data, one seed
small  for one modern GPU: ResNet-18 on more toy data, three seeds
paper  the published recipes on CIFAR-10, ImageNet, VOC and COCO; unpublished settings are our own (docs/detection.md)
=====  =======================================================================================================

An experiment's ``minutes`` estimate one training of a detector, or one linear probe, per method and seed, with no other
job running: measured for ``mini`` on an idle machine with two cores, guessed for the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.report.published import load_published_table
from ssql_det.report.table_sources import format_bits_option, get_source
from ssql_det.reproduce.experiments import (
    PACT,
    RANDOM,
    SIMSIAM,
    SSQL,
    DetectorExperiment,
    Experiment,
    ProbeExperiment,
    make_ablation_pretrainings,
    make_published_pretraining,
    make_published_pretrainings,
    make_toy_pact_pretraining,
    make_toy_pretrainings,
)
from ssql_det.toydata.dataset import ToyDataSettings

MINIMUMS = {
    "scenes": 24,
    "iterations": 4,
    "calibration_images": 4,
}  # lower limits of counts that ``--budget`` scales
_DETECTION_CONFIGS = "configs/detection"
_IMAGENET_CONFIG_PREFIX = "configs/pretrain/imagenet"


@dataclass(frozen=True)
class Preset:
    """``data`` is the toy data to make, or ``None`` where real datasets are used.

    Unless ``pretrains_each_seed``, all seeds of a detector start from one backbone, and probes default to one seed.
    """

    name: str
    data: ToyDataSettings | None
    experiments: tuple[Experiment, ...]
    bits: str  # bit-widths of detectors; each probe has its own
    seeds: int  # default number of seeds
    min_crops: int = 400  # ``--budget`` makes no fewer: a fifth are for validation, the others must fill a batch
    pretrains_each_seed: bool = True
    has_measured_minutes: bool = False  # False: minutes are guessed
    is_for_gpu: bool = True  # False: the minutes are for a CPU
    score_threshold: float | None = None  # of detections that are drawn; None: the default of ssql-det predict

    @property
    def tables(self) -> tuple[int, ...]:
        return tuple(sorted({experiment.table for experiment in self.experiments}))


@dataclass(frozen=True)
class Options:
    """The options that a user sets, and ``has_gpu``, which is detected."""

    out: Path  # folder of the run
    tables: tuple[int, ...] = (6, 7)  # the tables of detectors
    methods: tuple[str, ...] = ()  # empty: all methods of the tables
    bits: str = ""  # such as "FP,8,2w4a"; "": the bit-widths of the preset
    seeds: int | None = None  # number of seeds; None: see count_seeds
    checkpoints: tuple[tuple[str, str], ...] = ()  # pairs of method and file: a backbone to use instead of pretraining
    budget: float = 1.0  # fraction of the toy data, and of the detectors' training iterations and calibration images
    num_gpus: int = 1  # of each pretraining, training and sweep; on a machine without GPUs: processes on the CPU
    imagenet: Path = Path("datasets/imagenet")  # folders of real datasets, which only the preset paper uses
    cifar10: Path = Path("datasets")
    has_gpu: bool = False  # whether this machine has a GPU; False: each process has one CPU thread

    def get_data_option(self, dataset: str) -> str:
        """The value of the option ``--data`` for ``imagenet`` or ``cifar10``.

        >>> Options(Path("runs/paper")).get_data_option("cifar10")
        'cifar10:datasets'
        """
        return {"imagenet": str(self.imagenet), "cifar10": f"cifar10:{self.cifar10}"}[dataset]


def count_seeds(experiment: Experiment, preset: Preset, options: Options) -> int:
    defaults_to_one_seed = isinstance(experiment, ProbeExperiment) and not preset.pretrains_each_seed
    return options.seeds or (1 if defaults_to_one_seed else preset.seeds)


def get_datasets_root() -> Path:
    """The folder of VOC and COCO (``DETECTRON2_DATASETS``)."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


# Paths of the test images that detections are drawn on, to be formatted with the number in the file name.
_VOC_IMAGE, _COCO_IMAGE = "VOC2007/JPEGImages/{:06d}.jpg", "coco/val2017/{:012d}.jpg"
_MINI_DATA = ToyDataSettings(scenes=1000, crops=10000, least_side=128, most_side=128, difficulty=0.0)
_SMALL_DATA = ToyDataSettings(scenes=4000, crops=40000, least_side=128, most_side=256, difficulty=0.25)
_PUBLISHED_BITS, _TOY_BITS = "FP,8,6,5,4", "FP,8,6,5,4,2w4a"


class _DetectorCosts(NamedTuple):
    minutes: float  # of training
    sweep_minutes: float  # of the evaluation at all bit-widths
    megabytes: float  # on disk, of the folder of a training


def _make_toy_detectors(
    preset: str, network: str, c4_costs: _DetectorCosts, fpn_costs: _DetectorCosts
) -> tuple[Experiment, ...]:
    """The detectors of Tables 6 (C4) and 7 (FPN) on toy data. ``network``: as in the names of their config files."""
    pretrainings = make_toy_pretrainings(preset)
    methods = {RANDOM: None, SIMSIAM: pretrainings[SIMSIAM], SSQL: pretrainings[SSQL]}
    return (
        DetectorExperiment(
            name="c4",
            table=6,
            dataset="toy_voc_2007_test",
            methods=methods,
            config=f"{_DETECTION_CONFIGS}/toy_voc_{network}_c4.yaml",
            calibration_images=64,
            **c4_costs._asdict(),
            image_pattern=_VOC_IMAGE,
        ),
        DetectorExperiment(
            name="fpn",
            table=7,
            dataset="toy_coco_2017_val",
            methods=methods,
            config=f"{_DETECTION_CONFIGS}/toy_coco_{network}_fpn.yaml",
            calibration_images=64,
            **fpn_costs._asdict(),
            image_pattern=_COCO_IMAGE,
        ),
    )


def _make_toy_probes(preset: str, minutes: float) -> tuple[Experiment, ...]:
    """The probes of Tables 1, 8 and 12. Table 1 has all eight methods, each base method next to its SSQL variant; and
    SimSiam-PACT."""
    pretrainings = make_toy_pretrainings(preset)
    table_12 = {method: pretrainings[method] for method in load_published_table(12).methods}
    table_1 = {**pretrainings, PACT: make_toy_pact_pretraining(preset)}
    methods_by_table = {1: table_1, 8: make_ablation_pretrainings(preset), 12: table_12}
    return tuple(
        ProbeExperiment(f"table{table}", table=table, dataset="crops", methods=methods, minutes=minutes)
        for table, methods in methods_by_table.items()
    )


def _make_published_probes(
    table: int, data_option: str, minutes_per_bit_width: Mapping[str, float]
) -> tuple[Experiment, ...]:
    """An experiment for each network of a table, with the published protocol. ``data_option``: as in
    :meth:`Options.get_data_option`; ``minutes_per_bit_width``: of a probe, by network."""
    bit_widths = load_published_table(table).bit_widths
    return tuple(
        ProbeExperiment(
            f"table{table}-{network.lower()}",
            table=table,
            dataset=get_source(table).dataset,
            methods=make_published_pretrainings(table, network),
            minutes=minutes * len(bit_widths),
            bits=format_bits_option(bit_widths),
            arguments=("linear", "--protocol", "published"),
            network=network,
            data=data_option,
        )
        for network, minutes in minutes_per_bit_width.items()
    )


# By method, as the published tables print it: "(ours)" means the paper's authors, not this project.
_VOC_METHODS = {
    RANDOM: None,
    "BYOL": make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r18_byol.yaml"),
    SIMSIAM: make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r18_simsiam.yaml"),
    "SimSiam-200ep": make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r18_simsiam_200ep.yaml"),
    SSQL: make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r18_ssql.yaml"),
    "SSQL-200ep (ours)": make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r18_ssql_200ep.yaml"),
}
_COCO_METHODS = {
    "BYOL": make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r50_byol.yaml"),
    SIMSIAM: make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r50_simsiam.yaml"),
    SSQL: make_published_pretraining(f"{_IMAGENET_CONFIG_PREFIX}_r50_ssql.yaml"),
}
_PUBLISHED_EXPERIMENTS = (
    DetectorExperiment(
        name="c4",
        table=6,
        dataset="voc_2007_test",
        methods=_VOC_METHODS,
        config=f"{_DETECTION_CONFIGS}/voc_r18_c4.yaml",
        calibration_images=256,
        minutes=180,
        sweep_minutes=20,
        megabytes=300,
        image_pattern=_VOC_IMAGE,
        image_numbers=(1, 4),  # draw detections on 000001.jpg and 000004.jpg
    ),
    DetectorExperiment(
        name="fpn",
        table=7,
        dataset="coco_2017_val",
        methods=_COCO_METHODS,
        config=f"{_DETECTION_CONFIGS}/coco_mask_r50_fpn.yaml",
        calibration_images=256,
        minutes=750,
        sweep_minutes=40,
        megabytes=500,
        image_pattern=_COCO_IMAGE,
        image_numbers=(139, 285),  # draw detections on the images with these COCO ids
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
            (
                *_make_toy_detectors(
                    "mini",
                    network="narrow",
                    c4_costs=_DetectorCosts(minutes=1.3, sweep_minutes=0.4, megabytes=16),
                    fpn_costs=_DetectorCosts(minutes=1.1, sweep_minutes=0.5, megabytes=28),
                ),
                *_make_toy_probes("mini", minutes=0.4),
            ),
            bits=_TOY_BITS,
            seeds=1,
            min_crops=200,
            score_threshold=0.3,
            has_measured_minutes=True,
            is_for_gpu=False,
        ),
        Preset(
            "small",
            _SMALL_DATA,
            (
                *_make_toy_detectors(
                    "small",
                    network="r18",
                    c4_costs=_DetectorCosts(minutes=0.8, sweep_minutes=0.4, megabytes=200),
                    fpn_costs=_DetectorCosts(minutes=0.8, sweep_minutes=0.5, megabytes=300),
                ),
                *_make_toy_probes("small", minutes=0.5),
            ),
            bits=_TOY_BITS,
            seeds=3,
            score_threshold=0.3,
        ),
        Preset("paper", None, _PUBLISHED_EXPERIMENTS, bits=_PUBLISHED_BITS, seeds=5, pretrains_each_seed=False),
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
