"""What a user may say of a reproduction, and what follows from it and a preset.

>>> seeds_of(part, preset("mini"), Choices(Path("runs/mini"), seeds=3))
3
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ssql_det.reproduce.parts import Part, Probing
from ssql_det.reproduce.presets import Preset

LEAST = {"scenes": 24, "crops": 400, "iterations": 4, "calibration": 4}  # of a budget however small


@dataclass(frozen=True)
class Choices:
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

        >>> Choices(Path("runs/paper")).images("cifar10")
        'cifar10:datasets'
        """
        return {"imagenet": str(self.imagenet), "cifar10": f"cifar10:{self.cifar10}"}[data]


def seeds_of(part: Part, preset: Preset, choices: Choices) -> int:
    """Published backbones are one of each method, unless more are asked for."""
    is_one = isinstance(part, Probing) and not preset.pretrains_each_seed
    return choices.seeds or (1 if is_one else preset.seeds)


def data_sets() -> Path:
    """Where the real data sets are."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
