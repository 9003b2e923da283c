"""The contents of presets: how each method's backbone is pretrained, and the experiments.

An experiment measures the values of a published table again. A toy preset uses one network for all tables, so tables
share runs: SimSiam is also row (a) of the ablation, SSQL row (i). The published recipes are the configs in
`report.table_sources`; minutes of published recipes are guesses.

>>> sorted(make_toy_pretrainings("mini"))[:3]
['BYOL', 'BYOL+SSQL', 'MoCov2']
>>> make_toy_pretrainings("mini")["SSQL (ours)"] == make_ablation_pretrainings("mini")["(i)"]
True
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

from ssql_det.report.published import load_published_table
from ssql_det.report.table_sources import TRAINED_AT_EACH_WIDTH, get_probe_source

# As the published tables print them: "(ours)" means the paper's authors, not this project.
RANDOM, SIMSIAM, SSQL, PACT = "random init.", "SimSiam", "SSQL (ours)", "SimSiam-PACT"
_FOLDER = "configs/pretrain"
_TOY_METHODS = {  # base method: its SSQL variant, and the base method's name in config files ('': <preset>.yaml)
    SIMSIAM: (SSQL, ""),
    "BYOL": ("BYOL+SSQL", "byol"),
    "MoCov2": ("MoCov2+SSQL", "moco"),
    "SimCLR": ("SSQL-NCE (ours)", "simclr"),
}
_WITHOUT_SSQL = ("SSQL.ENABLED", "False")  # override of a pretraining config
# Minutes of pretraining the base method and its SSQL variant, by name in config files (see _TOY_METHODS): measured on
# two CPU cores for mini, guessed for one GPU for small.
_TOY_MINUTES = {
    "mini": {"": (1.8, 3.3), "byol": (2.2, 3.8), "moco": (1.7, 2.7), "simclr": (1.8, 3.4)},
    "small": {"": (1.0, 2.0), "byol": (1.3, 2.3), "moco": (1.3, 1.9), "simclr": (1.0, 2.0)},
}
_MEGABYTES = {"mini": 20, "small": 150, 18: 230, 34: 310, 50: 400}  # of a checkpoint, by toy preset or ResNet depth
# Hours of a pretraining without SSQL, by dataset and ResNet depth, guessed for one GPU and the epochs of the config; a
# config whose name ends in _200ep trains twice as long.
_HOURS = {
    ("imagenet", 18): 24,
    ("imagenet", 50): 72,
    ("cifar10", 18): 2,
    ("cifar10", 34): 3,
    ("cifar10", 50): 6,
}


@dataclass(frozen=True)
class Pretraining:
    """A pretraining config and its overrides; pretrainings with the same ``name`` are one run.

    ``data`` is the dataset of a published recipe, ``imagenet`` or ``cifar10``; toy presets ignore it.
    ``is_per_width``: a network is trained for each bit-width, quantized; only ``--methods`` selects such a method.

    >>> make_toy_pact_pretraining("mini").at("4w4a").name
    'simsiam-pact-4w4a'
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()  # KEY, VALUE, KEY, VALUE, ...
    minutes: float = 0.0  # of one run, estimated
    megabytes: float = 0.0  # of the checkpoint, estimated
    data: str = "imagenet"
    is_per_width: bool = False

    def at(self, bits: str) -> Pretraining:
        """The training of one bit-width."""
        return replace(self, name=f"{self.name}-{bits}", overrides=(*self.overrides, "SSQL.FIXED_BITS", bits))


@dataclass(frozen=True)
class Experiment:
    """Measures a published table, or its rows of one network, again. ``dataset``: named as in result rows.

    ``methods``: the pretraining of each method, ``None`` for random weights. A published method that is not among them
    needs a checkpoint from the user.
    """

    name: str
    table: int
    dataset: str
    methods: Mapping[str, Pretraining | None]

    metric: ClassVar[str]  # the main metric, named as in result rows
    metric_name: ClassVar[str]  # as printed

    @property
    def title(self) -> str:
        raise NotImplementedError

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods of the published table, then the methods that only the preset has."""
        return tuple(dict.fromkeys((*self._list_published_methods(), *self.methods)))

    def match_method(self, method: str, names: Container[str]) -> str | None:
        """The name of ``method`` among ``names``, those of result rows or of a user's checkpoints, if it is there.

        It is the same name or, if ``method`` is a letter of an ablation, its other name (see `aliases`).
        """
        candidates = (method, self.aliases.get(method))
        return next((name for name in candidates if name is not None and name in names), None)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of an ablation's letters, such as ``{"(a)": "SimSiam"}``; most letters have none."""
        return {}

    def _list_published_methods(self) -> Iterator[str]:
        yield from load_published_table(self.table).methods


@dataclass(frozen=True)
class DetectorExperiment(Experiment):
    """A detector that is trained from each method's backbone and evaluated at several bit-widths.

    ``minutes`` of training, ``sweep_minutes`` of the evaluation, and ``megabytes`` of the training's folder on disk are
    estimates per method and seed.
    """

    metric, metric_name = "bbox/AP", "box AP"

    config: str
    calibration_images: int  # how many
    minutes: float
    sweep_minutes: float
    megabytes: float
    image_pattern: str  # path of a test image in the folder of the datasets, to be formatted with the image's number
    # the test images to draw detections on; toy experiments have none here: their first two test images are used
    image_numbers: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        return {6: "Faster R-CNN, C4", 7: "Mask R-CNN, FPN"}[self.table]


@dataclass(frozen=True)
class ProbeExperiment(Experiment):
    """A linear probe of each method's frozen backbone.

    ``network``: the backbone as named in the published table; empty: all rows of the table. ``minutes``: of one
    ``ssql-det probe`` per method and seed, estimated. ``arguments``: those of ``ssql-det probe`` other than checkpoint,
    data, bits and output. ``data``: of a published probe, ``imagenet`` or ``cifar10``; toy presets ignore it.

    >>> ProbeExperiment("table8", 8, "crops", make_ablation_pretrainings("mini"), minutes=0.4).title
    'Linear probe'
    """

    metric, metric_name = "linear/top1", "top-1"

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
    def aliases(self) -> Mapping[str, str]:
        return get_probe_source(self.table).aliases

    def _list_published_methods(self) -> Iterator[str]:
        rows = load_published_table(self.table).rows
        yield from (row.method for row in rows if not self.network or row.backbone == self.network)


@cache
def make_toy_pretrainings(preset: str) -> dict[str, Pretraining]:
    """The pretrainings of all eight methods, from configs ``<preset>.yaml`` and ``<preset>_<method>.yaml``."""
    pretrainings = {}
    for method, (ssql_method, file_name) in _TOY_METHODS.items():
        config = f"{_FOLDER}/{preset}{file_name and f'_{file_name}'}.yaml"
        minutes, ssql_minutes = _TOY_MINUTES[preset][file_name]
        megabytes = _MEGABYTES[preset]
        pretrainings[method] = Pretraining(file_name or "simsiam", config, _WITHOUT_SSQL, minutes, megabytes)
        ssql_name = f"ssql{file_name and f'-{file_name}'}"
        pretrainings[ssql_method] = Pretraining(ssql_name, config, (), ssql_minutes, megabytes)
    return pretrainings


def make_toy_pact_pretraining(preset: str) -> Pretraining:
    """SimSiam-PACT from the config ``<preset>_simsiam_pact.yaml``; its step is one quantized pass."""
    minutes, _ = _TOY_MINUTES[preset][""]
    config = f"{_FOLDER}/{preset}_simsiam_pact.yaml"
    return Pretraining("simsiam-pact", config, (), minutes, _MEGABYTES[preset], is_per_width=True)


@cache
def make_ablation_pretrainings(preset: str) -> dict[str, Pretraining]:
    """The nine rows of Table 8 with a toy preset's network."""
    (_, ssql_minutes), megabytes = _TOY_MINUTES[preset][""], _MEGABYTES[preset]
    rows_b_to_h = {
        f"({letter})": Pretraining(
            f"table8-{letter}", f"{_FOLDER}/table8/{preset}_{letter}.yaml", (), ssql_minutes, megabytes
        )
        for letter in "bcdefgh"
    }
    methods = make_toy_pretrainings(preset)
    return {"(a)": methods[SIMSIAM], **rows_b_to_h, "(i)": methods[SSQL]}


def make_published_pretrainings(table: int, network: str) -> dict[str, Pretraining]:
    """The methods of a table for which the repository has a config with this network."""
    configs = get_probe_source(table).configs
    return {
        method: replace(make_published_pretraining(config), is_per_width=method in TRAINED_AT_EACH_WIDTH)
        for (backbone, method), config in configs.items()
        if backbone == network
    }


def make_published_pretraining(config: str) -> Pretraining:
    """The pretraining of a published recipe's config, named after its file.

    >>> make_published_pretraining("configs/pretrain/table8/d.yaml").name
    'table8-d'
    """
    name = "-".join(Path(config).relative_to(_FOLDER).with_suffix("").parts)
    data = "imagenet" if name.startswith("imagenet") else "cifar10"
    depth = next((depth for depth in (18, 50) if f"_r{depth}_" in name), 34)  # Table 8's names have none: ResNet-34
    cost_factor = 1 if "ssql" not in name and not name.startswith("table8") else 2.1  # SSQL adds a quantized pass
    hours = _HOURS[data, depth] * cost_factor * (2 if name.endswith("_200ep") else 1)
    return Pretraining(name, config, (), 60 * hours, _MEGABYTES[depth], data)
