"""What is reproduced, at which size. Minutes are estimates of one lane: measured for ``mini`` on a machine of two
cores that had nothing else to do, guessed for the others.

=====  ==================================================================================================
mini   two CPU cores, minutes: the narrow ResNet on toy data; random weights, SimSiam, SSQL
small  one modern GPU, half an hour: ResNet-18 on more toy data, the same methods, three seeds
paper  the published recipes on ImageNet, VOC and COCO; what was never released is custom (docs/detection.md)
=====  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.toydata.dataset import Settings

_PRETRAIN, _DETECT = "configs/pretrain", "configs/detection"


@dataclass(frozen=True)
class Pretraining:
    """A config and what of it is changed; methods whose pretraining is equal share one run."""

    config: str
    overrides: tuple[str, ...] = ()
    minutes: float = 0.0


@dataclass(frozen=True)
class Transfer:
    """A detector that a table is made of. ``methods``: how each is pretrained, ``None`` for random weights; of
    published methods that are not here a checkpoint has to be given."""

    name: str
    table: int
    config: str
    dataset: str
    calibration: int
    methods: Mapping[str, Pretraining | None]
    minutes: float
    sweep_minutes: float
    megabytes: float
    image: str  # the path of a test image, by its number, below the folder of data sets
    shown: tuple[int, ...] = ()  # numbers of images to draw; the first two of toy data

    @property
    def title(self) -> str:
        return {6: "Faster R-CNN, C4", 7: "Mask R-CNN, FPN"}[self.table]


@dataclass(frozen=True)
class Preset:
    """``data`` are toy data to make, or ``None`` where the real ones are used. Where ``pretrains_each_seed`` is false,
    all seeds of a detector begin with one backbone."""

    name: str
    data: Settings | None
    transfers: tuple[Transfer, ...]
    bits: str
    seeds: int
    pretrains_each_seed: bool = True
    is_measured: bool = False  # its minutes
    is_for_gpu: bool = True
    score: float | None = None  # the least that is drawn; the command's own where it is not given


RANDOM, SIMSIAM, SSQL = "random init.", "SimSiam", "SSQL (ours)"


def _toy_methods(config: str, simsiam: float, ssql: float) -> dict[str, Pretraining | None]:
    plain = ("SSQL.ENABLED", "False")
    return {RANDOM: None, SIMSIAM: Pretraining(config, plain, simsiam), SSQL: Pretraining(config, (), ssql)}


_MINI = _toy_methods(f"{_PRETRAIN}/mini.yaml", simsiam=1.8, ssql=3.3)
_SMALL = _toy_methods(f"{_PRETRAIN}/small.yaml", simsiam=1.0, ssql=2.0)
_VOC = {
    RANDOM: None,
    SIMSIAM: Pretraining(f"{_PRETRAIN}/imagenet_r18_simsiam.yaml", (), 24 * 60),
    "SimSiam-200ep": Pretraining(f"{_PRETRAIN}/imagenet_r18_simsiam_200ep.yaml", (), 48 * 60),
    SSQL: Pretraining(f"{_PRETRAIN}/imagenet_r18_ssql.yaml", (), 50 * 60),
    "SSQL-200ep (ours)": Pretraining(f"{_PRETRAIN}/imagenet_r18_ssql_200ep.yaml", (), 100 * 60),
}
_COCO = {
    SIMSIAM: Pretraining(f"{_PRETRAIN}/imagenet_r50_simsiam.yaml", (), 72 * 60),
    SSQL: Pretraining(f"{_PRETRAIN}/imagenet_r50_ssql.yaml", (), 150 * 60),
}
_VOC_IMAGE, _COCO_IMAGE = "VOC2007/JPEGImages/{:06d}.jpg", "coco/val2017/{:012d}.jpg"
_TOY_C4, _TOY_FPN = ("toy_voc_2007_test", 64), ("toy_coco_2017_val", 64)
_MINI_DATA = Settings(scenes=1000, crops=10000, least_side=128, most_side=128, difficulty=0.0)
_SMALL_DATA = Settings(scenes=4000, crops=40000, least_side=128, most_side=256, difficulty=0.25)
_PUBLISHED, _WITH_TWO = "FP,8,6,5,4", "FP,8,6,5,4,2w4a"

PRESETS = {
    each.name: each
    for each in (
        Preset(
            "mini",
            _MINI_DATA,
            (
                Transfer("c4", 6, f"{_DETECT}/toy_voc_narrow_c4.yaml", *_TOY_C4, _MINI, 1.3, 0.4, 16, _VOC_IMAGE),
                Transfer("fpn", 7, f"{_DETECT}/toy_coco_narrow_fpn.yaml", *_TOY_FPN, _MINI, 1.1, 0.5, 28, _COCO_IMAGE),
            ),
            _WITH_TWO,
            seeds=1,
            score=0.3,
            is_measured=True,
            is_for_gpu=False,
        ),
        Preset(
            "small",
            _SMALL_DATA,
            (
                Transfer("c4", 6, f"{_DETECT}/toy_voc_r18_c4.yaml", *_TOY_C4, _SMALL, 0.8, 0.4, 200, _VOC_IMAGE),
                Transfer("fpn", 7, f"{_DETECT}/toy_coco_r18_fpn.yaml", *_TOY_FPN, _SMALL, 0.8, 0.5, 300, _COCO_IMAGE),
            ),
            _WITH_TWO,
            seeds=3,
            score=0.3,
        ),
        Preset(
            "paper",
            None,
            (
                Transfer(
                    *("c4", 6, f"{_DETECT}/voc_r18_c4.yaml", "voc_2007_test", 256, _VOC, 180, 20, 300),
                    *(_VOC_IMAGE, (1, 4)),
                ),
                Transfer(
                    *("fpn", 7, f"{_DETECT}/coco_mask_r50_fpn.yaml", "coco_2017_val", 256, _COCO, 750, 40, 500),
                    *(_COCO_IMAGE, (139, 285)),
                ),
            ),
            _PUBLISHED,
            seeds=5,
            pretrains_each_seed=False,
        ),
    )
}


def preset(name: str) -> Preset:
    """
    >>> preset("mini").seeds
    1
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}{did_you_mean(name, PRESETS)} (known: {', '.join(PRESETS)})")
    return PRESETS[name]
