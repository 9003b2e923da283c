"""How each published table is measured: by linear probes, by sweeps of detectors, or not yet.

A table's source maps result rows to the table's published rows, and makes the command that measures missing values. To
make another table reproducible, add a source for it here; without one, only the published values are shown.

>>> get_source(1).configs["ResNet-18", "SSQL (ours)"], get_source(13)
('configs/pretrain/cifar10_r18_ssql.yaml', TableSource(dataset=''))
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssql_det.core.config_files import list_configs
from ssql_det.core.rows import Row
from ssql_det.report import display_names
from ssql_det.report.published import PublishedRow, PublishedTable
from ssql_det.report.row_groups import UNNAMED, RowGroup

DETECTOR_CONFIGS = {  # the default config of each test set; paths are below configs/detection, as in result rows
    "voc_2007_test": "voc_r18_c4.yaml",
    "coco_2017_val": "coco_mask_r50_fpn.yaml",
    "toy_voc_2007_test": "toy_voc_narrow_c4.yaml",
    "toy_coco_2017_val": "toy_coco_narrow_fpn.yaml",
}
_CONFIG_FOLDER = "configs/detection"
TRAINED_AT_EACH_WIDTH = ("SimSiam-PACT",)  # published methods that train a network for each bit-width, and none for FP
_EQUAL_BITS = re.compile(r"(\d+)w\1a")  # weights and activations with the same number of bits


@dataclass(frozen=True)
class TableSource:
    """A table that no command can measure yet; the base class of the other sources."""

    dataset: str = ""  # named as in result rows; empty if no rows can belong to the table

    def resolve_scope(self, scope: str) -> str:
        """The scope (what is quantized, ``all`` or ``backbone``) of the rows to show, if the user chose ``scope``.

        It is empty if no rows can belong to the table.
        """
        return ""

    def get_published_group(self, row: PublishedRow, dataset: str) -> RowGroup:
        """The group of a published row, for a comparison with result rows on ``dataset``."""
        return RowGroup(row.dataset, row.backbone, row.method)

    def get_group(self, row: Row, table: PublishedTable) -> RowGroup:
        """The group of a result row."""
        raise NotImplementedError("no result row belongs to a table that is only published")

    def get_measure_command(self, table: PublishedTable, group: RowGroup, bits: Sequence[str], scope: str) -> str:
        """The command that measures the group's values at these bits; empty if no command can."""
        return ""

    def get_note(self, method: str) -> str:
        """What a reader must know of the measured rows of a method; mostly empty."""
        return ""


@dataclass(frozen=True)
class SweepSource(TableSource):
    """A table of detectors, measured with ``ssql-det sweep``. Groups have no backbone: the config determines it."""

    def resolve_scope(self, scope: str) -> str:
        return scope

    def get_published_group(self, row: PublishedRow, dataset: str) -> RowGroup:
        return RowGroup(dataset, "", row.method)

    def get_group(self, row: Row, table: PublishedTable) -> RowGroup:
        method = display_names.match_published_name(row.method, table.methods) or row.method.strip() or UNNAMED
        return RowGroup(row.dataset, "", method, row.config, display_names.format_scheme(row), str(row.calibration))

    def get_measure_command(self, table: PublishedTable, group: RowGroup, bits: Sequence[str], scope: str) -> str:
        """A sweep with the settings of the group, so that the new rows belong to it.

        The user must replace what is in angle brackets: the weights, and any config from outside of this repository.
        Scheme and calibration of existing rows are in a comment; the user must add their options.

        >>> from ssql_det.report.published import load_published_table
        >>> group = RowGroup("voc_2007_test", "", "BYOL")
        >>> SweepSource("voc_2007_test").get_measure_command(load_published_table(6), group, ["8w8a"], "all")
        'ssql-det sweep --config-file configs/detection/voc_r18_c4.yaml --bits 8 MODEL.WEIGHTS <byol.pth> \
SSQL_DET.METHOD BYOL OUTPUT_DIR sweeps/byol'
        """
        method = display_names.strip_ours("" if group.method == UNNAMED else group.method)
        file_stem = display_names.slugify(method) or "detector"
        # A row's config is a file with KEY VALUE overrides.
        config, *overrides = shlex.split(group.config) or [DETECTOR_CONFIGS.get(group.dataset, f"{group.dataset}.yaml")]
        is_in_repository = f"detection/{config.removesuffix('.yaml')}" in list_configs()
        path = f"{_CONFIG_FOLDER}/{config}" if is_in_repository else f"<{config}>"
        test_set = [] if group.dataset in DETECTOR_CONFIGS else [shlex.quote(f"({group.dataset!r},)")]
        other_dataset = [group.dataset] if group.dataset != self.dataset else []
        folder = "-".join([file_stem, *([scope] if scope != "all" else []), *other_dataset])
        parts = [
            f"ssql-det sweep --config-file {path}",
            f"--bits {format_bits_option(bits)}",
            *([f"--scope {shlex.quote(scope)}"] if scope != "all" else []),
            f"MODEL.WEIGHTS <{file_stem}.pth>",
            f"SSQL_DET.METHOD {shlex.quote(method)}",
            *([shlex.join(overrides)] if overrides else []),
            *(f"DATASETS.TEST {each}" for each in test_set),
            f"OUTPUT_DIR {shlex.quote(f'sweeps/{folder}')}",
            *([f"# scheme: {group.scheme}; calibration: {group.calibration}"] if group.calibration else []),
        ]
        return " ".join(parts)


@dataclass(frozen=True)
class ProbeSource(TableSource):
    """A table of frozen backbones, measured with ``ssql-det probe linear``.

    ``data_option``: the value of ``--data``. ``is_3x3_stem_expected``: whether the published ResNets have the 3x3 stem
    for CIFAR. ``configs``: pretraining configs by printed backbone and method. ``aliases``: the methods that letters of
    an ablation stand for. ``extra_methods``: methods of other published tables; result rows of them are shown too,
    under their printed names. ``notes``: on the measured rows of methods, by printed name.
    """

    data_option: str = ""
    is_3x3_stem_expected: bool = False
    configs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    extra_methods: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def resolve_scope(self, scope: str) -> str:
        return "backbone"

    def get_published_group(self, row: PublishedRow, dataset: str) -> RowGroup:
        return RowGroup(dataset, row.backbone, row.method)

    def get_note(self, method: str) -> str:
        return self.notes.get(method, "")

    def get_group(self, row: Row, table: PublishedTable) -> RowGroup:
        printed_by_name = {  # the printed method by each name of it
            name: method
            for method in (*table.methods, *self.extra_methods)
            for name in (method, self.aliases.get(method, method))
        }
        name = display_names.match_published_name(row.method, printed_by_name)
        method = printed_by_name[name] if name else row.method.strip() or UNNAMED
        network, protocol = (
            display_names.format_network(row.network, self.is_3x3_stem_expected),
            display_names.format_protocol(row.protocol),
        )
        return RowGroup(row.dataset, network, method, protocol, display_names.format_scheme(row), str(row.calibration))

    def get_measure_command(self, table: PublishedTable, group: RowGroup, bits: Sequence[str], scope: str) -> str:
        """A linear probe; for a group with rows, the probes of these rows, whose protocol is in a comment.

        A method that trains a network for each bit-width is measured by ``ssql-det reproduce``.
        """
        method = self.aliases.get(group.method, group.method)
        if method in TRAINED_AT_EACH_WIDTH:
            preset = "paper" if group.dataset == self.dataset else "mini"
            return (
                f"ssql-det reproduce --preset {preset} --table {table.number} --methods {shlex.quote(method)} "
                f"--bits {format_bits_option(bits)}"
            )
        config = self.configs.get((group.backbone, group.method))
        data = self.data_option if group.dataset == self.dataset else f"<{group.dataset}>"
        arguments, checkpoint = (
            ["linear"],
            f"<{display_names.slugify(display_names.strip_ours(method)) or 'backbone'}.pth>",
        )
        comment = ""
        if group.config:  # a formatted protocol, which begins with the probes' names
            arguments = group.config.partition(";")[0].split(", ")
            comment = f" # as in the existing rows: {group.config}; {group.scheme}; calibration: {group.calibration}"
        elif config is None:
            return ""
        elif group.dataset == self.dataset:
            run = Path(config).relative_to("configs/pretrain").with_suffix("")
            checkpoint = f"output/{run}/checkpoint.pth"  # the config's OUTPUT_DIR
            arguments += ["--protocol", "published"]
            comment = f" # after ssql-det pretrain --config-file {config}"
        # A checkpoint does not store which letter of the ablation it is.
        if group.method.startswith("(") and group.method not in self.aliases:
            arguments += ["--method", group.method]
        options = f"--checkpoint {checkpoint} --data {data} --bits {format_bits_option(bits)}"
        return f"ssql-det probe {shlex.join(arguments)} {options}{comment}"


def format_bits_option(bit_widths: Iterable[str]) -> str:
    """Format bit-widths as the value of the option ``--bits``.

    >>> format_bits_option(["FP", "8w8a", "2w4a"])
    'FP,8,2w4a'
    """
    return shlex.quote(",".join(_EQUAL_BITS.sub(r"\1", bits) for bits in bit_widths))


def expand_bits_option(option: str) -> list[str]:
    """The bit-widths of a value of the option ``--bits``, as they are printed.

    >>> expand_bits_option("FP,8,2w4a")
    ['FP', '8w8a', '2w4a']
    """
    return [f"{bits}w{bits}a" if bits.isdecimal() else bits for bits in option.replace(" ", "").split(",")]


# Printed networks and methods by their names in config files
_NETWORKS = {"r18": "ResNet-18", "r34": "ResNet-34", "r50": "ResNet-50"}
_SIMSIAM = {"simsiam": "SimSiam", "ssql": "SSQL (ours)"}
_PACT = {"simsiam_pact": "SimSiam-PACT"}
_PACT_NOTE = (
    "our reconstruction: SimSiam with PACT's activations (trained clipping levels that start at 10, not regularized) "
    "and DoReFa's weights, a network for each bit-width; the published code has no config of it"
)
_CONTRASTIVE = {"simclr": "SimCLR", "moco": "MoCov2", "ssql_simclr": "SSQL-NCE (ours)"}
_TABLE_12_METHODS = {"byol": "BYOL", "ssql_byol": "BYOL+SSQL", "moco": "MoCov2", "ssql_moco": "MoCov2+SSQL"}


def _list_configs(data: str, network: str, methods: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Pretraining configs by printed network and method; the arguments are as in file names."""
    folder = "configs/pretrain"
    return {(_NETWORKS[network], method): f"{folder}/{data}_{network}_{name}.yaml" for name, method in methods.items()}


def _list_table_1_configs(network: str) -> dict[tuple[str, str], str]:
    return _list_configs("cifar10", network, {**_SIMSIAM, "byol": "BYOL", **_CONTRASTIVE})


_IMAGENET_CONFIGS = {
    **_list_configs("imagenet", "r18", {**_SIMSIAM, **_PACT, "byol": "BYOL"}),
    **_list_configs("imagenet", "r50", {**_SIMSIAM, "byol": "BYOL", "moco": "MoCov2"}),
}
_TABLE_1_CONFIGS = {
    **_list_table_1_configs("r18"),
    **_list_configs("cifar10", "r18", _PACT),
    **_list_table_1_configs("r50"),
}
_ABLATION_CONFIGS = {
    (_NETWORKS["r34"], f"({letter})"): f"configs/pretrain/table8/{letter}.yaml" for letter in "abcdefghi"
}
_SOURCES: Mapping[int, TableSource] = {
    1: ProbeSource(
        "cifar10",
        data_option="cifar10:datasets",
        is_3x3_stem_expected=True,
        configs=_TABLE_1_CONFIGS,
        extra_methods=("BYOL+SSQL", "MoCov2+SSQL"),
        notes={"SimSiam-PACT": _PACT_NOTE},
    ),
    3: ProbeSource(
        "imagenet",
        data_option="datasets/imagenet",
        configs=_IMAGENET_CONFIGS,
        notes={"SimSiam-PACT": _PACT_NOTE},
    ),
    6: SweepSource("voc_2007_test"),
    7: SweepSource("coco_2017_val"),
    8: ProbeSource(
        "cifar10",
        data_option="cifar10:datasets",
        is_3x3_stem_expected=True,
        configs=_ABLATION_CONFIGS,
        aliases={"(a)": "SimSiam", "(i)": "SSQL (ours)"},
    ),
    12: ProbeSource(
        "cifar10",
        data_option="cifar10:datasets",
        is_3x3_stem_expected=True,
        configs=_list_configs("cifar10", "r18", _TABLE_12_METHODS),
    ),
}


def get_source(table: int) -> TableSource:
    return _SOURCES.get(table, TableSource())


def get_probe_source(table: int) -> ProbeSource:
    """
    >>> get_probe_source(8).aliases
    {'(a)': 'SimSiam', '(i)': 'SSQL (ours)'}
    """
    source = get_source(table)
    assert isinstance(source, ProbeSource), f"Table {table} is not measured with linear probes"
    return source


def list_datasets() -> set[str]:
    """The datasets of the tables that can be measured, named as in result rows."""
    return {source.dataset for source in _SOURCES.values()}
