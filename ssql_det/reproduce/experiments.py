"""What presets are made of: how each method's backbone is pretrained, what is done with it, which table that fills.

Toy presets have one network for all tables, so what two tables ask for is one run: SimSiam is row (a) of the ablation,
SSQL its row (i). The published recipes are the configs that `report.producing` knows; their minutes are guesses.

>>> sorted(toy_pretrainings("mini")), toy_pretrainings("mini")["SSQL (ours)"] is ablation_pretrainings("mini")["(i)"]
(['BYOL', 'BYOL+SSQL', 'MoCov2', ...], True)
>>> ProbeExperiment("crops", 8, "crops", ablation_pretrainings("mini"), minutes=0.4).title
'Linear probe'
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from ssql_det.report.published import load_published_table
from ssql_det.report.table_sources import get_probe_source

RANDOM, SIMSIAM, SSQL = "random init.", "SimSiam", "SSQL (ours)"
_FOLDER = "configs/pretrain"
_BASES = {  # the method alone, SSQL over it, and what their files are called by
    SIMSIAM: (SSQL, ""),
    "BYOL": ("BYOL+SSQL", "byol"),
    "MoCov2": ("MoCov2+SSQL", "moco"),
    "SimCLR": ("SSQL-NCE (ours)", "simclr"),
}
_ALONE = ("SSQL.ENABLED", "False")
_MINUTES = {  # of a method alone, and with SSQL over it
    "mini": {"": (1.8, 3.3), "byol": (2.2, 3.8), "moco": (1.7, 2.7), "simclr": (1.8, 3.4)},
    "small": {"": (1.0, 2.0), "byol": (1.3, 2.3), "moco": (1.3, 1.9), "simclr": (1.0, 2.0)},
}
_MEGABYTES = {"mini": 20, "small": 150, 18: 230, 34: 310, 50: 400}  # of a checkpoint: of a preset, or by depth
_HOURS = {("imagenet", 18): 24, ("imagenet", 50): 72, ("cifar10", 18): 2, ("cifar10", 34): 3, ("cifar10", 50): 6}


@dataclass(frozen=True)
class Pretraining:
    """A config and what of it is changed. Those of one ``name`` are one run, whichever tables need it.

    ``data``: of a published recipe the data set that it is for, ``imagenet`` or ``cifar10``; toy presets make theirs.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    minutes: float = 0.0
    megabytes: float = 0.0
    data: str = "imagenet"


@dataclass(frozen=True)
class Experiment:
    """What fills a table, or of a table of several networks the lines of one. ``dataset`` is as rows name it.

    ``methods``: how each is pretrained, ``None`` for random weights; of published methods that are not here a
    checkpoint has to be given.
    """

    name: str
    table: int
    dataset: str
    methods: Mapping[str, Pretraining | None]

    metric: ClassVar[str]  # the first that a reader asks for
    figure: ClassVar[str]  # what that is called

    @property
    def title(self) -> str:
        """What stands before its figures."""
        raise NotImplementedError

    @property
    def all_methods(self) -> tuple[str, ...]:
        """Those of the published table, then what a preset has beside them."""
        return tuple(dict.fromkeys((*self._published(), *self.methods)))

    def among(self, method: str, names: Container[str]) -> str | None:
        """The name that a method is asked for by: its own, or of a letter what it means."""
        return next((name for name in (method, self.meaning.get(method)) if name is not None and name in names), None)

    @property
    def meaning(self) -> Mapping[str, str]:
        """What letters for methods mean, where they mean one."""
        return {}

    def _published(self) -> Iterator[str]:
        yield from load_published_table(self.table).methods


@dataclass(frozen=True)
class DetectorExperiment(Experiment):
    """A detector, begun with each method's backbone, trained and swept."""

    metric, figure = "bbox/AP", "box AP"

    config: str
    calibration: int
    minutes: float
    sweep_minutes: float
    megabytes: float
    image: str  # the path of a test image, by its number, below the folder of data sets
    shown: tuple[int, ...] = ()  # numbers of images to draw; the first two of toy data

    @property
    def title(self) -> str:
        return {6: "Faster R-CNN, C4", 7: "Mask R-CNN, FPN"}[self.table]


@dataclass(frozen=True)
class ProbeExperiment(Experiment):
    """Frozen backbones with a linear layer on top. ``network`` is as tables print it, for one of several networks.

    ``arguments`` are those of the probe, beside the checkpoint, the data and the place of its rows; ``data`` as in
    `Pretraining`.
    """

    metric, figure = "linear/top1", "top-1"

    methods: Mapping[str, Pretraining]
    minutes: float
    bits: str = "FP,8,6,5,4,3,2w8a,2w4a"
    arguments: tuple[str, ...] = ("knn", "linear")
    network: str = ""
    data: str = "cifar10"

    @property
    def title(self) -> str:
        return f"Linear probe, {self.network}" if self.network else "Linear probe"

    @property
    def meaning(self) -> Mapping[str, str]:
        return get_probe_source(self.table).aliases

    def _published(self) -> Iterator[str]:
        lines = load_published_table(self.table).rows
        yield from (line.method for line in lines if not self.network or line.backbone == self.network)


@cache
def toy_pretrainings(preset: str) -> dict[str, Pretraining]:
    """All eight, of configs ``<preset>.yaml`` and ``<preset>_<method>.yaml``."""
    found = {}
    for method, (with_ssql, file) in _BASES.items():
        config = f"{_FOLDER}/{preset}{file and f'_{file}'}.yaml"
        alone, both = _MINUTES[preset][file]
        found[method] = Pretraining(file or "simsiam", config, _ALONE, alone, _MEGABYTES[preset])
        found[with_ssql] = Pretraining(f"ssql{file and f'-{file}'}", config, (), both, _MEGABYTES[preset])
    return found


@cache
def ablation_pretrainings(preset: str) -> dict[str, Pretraining]:
    """Table 8's nine rows on the toy presets' network."""
    config, cost = f"{_FOLDER}/table8/{preset}_", (_MINUTES[preset][""][1], _MEGABYTES[preset])
    inner = {
        f"({letter})": Pretraining(f"table8-{letter}", f"{config}{letter}.yaml", (), *cost) for letter in "bcdefgh"
    }
    return {"(a)": toy_pretrainings(preset)[SIMSIAM], **inner, "(i)": toy_pretrainings(preset)[SSQL]}


def published_pretrainings(table: int, network: str) -> dict[str, Pretraining]:
    """The lines of a table that a config of the repository pretrains, of one network."""
    configs = get_probe_source(table).configs
    return {
        method: pretraining_from_config(config) for (printed, method), config in configs.items() if printed == network
    }


def pretraining_from_config(config: str) -> Pretraining:
    """A config of the published recipes by itself; its name is the file's.

    >>> pretraining_from_config("configs/pretrain/table8/d.yaml").name
    'table8-d'
    """
    name = "-".join(Path(config).relative_to(_FOLDER).with_suffix("").parts)
    data = "imagenet" if name.startswith("imagenet") else "cifar10"
    depth = next((depth for depth in (18, 50) if f"_r{depth}_" in name), 34)
    passes = 1 if "ssql" not in name and not name.startswith("table8") else 2.1
    hours = _HOURS[data, depth] * passes * (2 if name.endswith("_200ep") else 1)
    return Pretraining(name, config, (), 60 * hours, _MEGABYTES[depth], data)
