"""What presets are made of: how a backbone is pretrained, what is done with it, which table that fills.

>>> ssql = Pretraining("ssql", "configs/pretrain/mini.yaml", minutes=3.3)
>>> Probing("crops", 8, "crops", {"(i)": ssql}, minutes=0.4).title
'Linear probe'
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ssql_det.report.producing import probe_of
from ssql_det.report.published import published_table


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
class Part:
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
        yield from published_table(self.table).methods


@dataclass(frozen=True)
class Transfer(Part):
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
class Probing(Part):
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
        return probe_of(self.table).known_as

    def _published(self) -> Iterator[str]:
        lines = published_table(self.table).rows
        yield from (line.method for line in lines if not self.network or line.backbone == self.network)
