"""What this project can produce of the published tables: the one place to extend when it can produce more.

A kind of table says which rows are of one, which line a row is of, and the command that fills a line. A table that is
not here is published only, and so is a line of a probe's table that no config pretrains.

>>> get_source(1).configs["ResNet-18", "SSQL (ours)"], get_source(13)
('configs/pretrain/cifar10_r18_ssql.yaml', TableSource(dataset=''))
>>> get_source(6).line(published_table(6).find("BYOL"), "toy_voc_2007_test")
RowGroup(dataset='toy_voc_2007_test', backbone='', method='BYOL', config='', scheme='', calibration='')
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssql_det.core.rows import Row
from ssql_det.report.display_names import (
    format_network,
    format_protocol,
    format_scheme,
    match_published_name,
    slugify,
    strip_ours,
)
from ssql_det.report.published import PublishedRow, PublishedTable
from ssql_det.report.row_groups import UNNAMED, RowGroup

DETECTOR_CONFIGS = {  # of detectors, by what they evaluate on
    "voc_2007_test": "voc_r18_c4.yaml",
    "coco_2017_val": "coco_mask_r50_fpn.yaml",
    "toy_voc_2007_test": "toy_voc_narrow_c4.yaml",
    "toy_coco_2017_val": "toy_coco_narrow_fpn.yaml",
}
_OTHERS = (  # of this repository; rows name each by its path below the folder
    *("voc_r34_c4.yaml", "voc_r50_c4.yaml", "coco_mask_r18_fpn.yaml", "coco_mask_r34_fpn.yaml"),
    *("toy_voc_r18_c4.yaml", "toy_coco_r18_fpn.yaml"),
)
_FOLDERS = ("table6/", "table7/", "zoo/")
_EQUAL = re.compile(r"(\d+)w\1a")


@dataclass(frozen=True)
class TableSource:
    """By itself: nothing here fills it yet, all of it is published only. ``dataset`` is as rows name it."""

    dataset: str = ""

    def scope(self, asked: str) -> str:
        """That of its rows."""
        return ""

    def line(self, row: PublishedRow, dataset: str) -> RowGroup:
        """What names a published line; its data set is the one that rows are of."""
        return RowGroup(row.dataset, row.backbone, row.method)

    def group(self, row: Row, table: PublishedTable) -> RowGroup:
        raise NotImplementedError("no row is of a table that nothing fills")

    def command(self, table: PublishedTable, group: RowGroup, bits: Sequence[str], scope: str) -> str:
        """What fills a line at these bits; nothing for one that is published only."""
        return ""


@dataclass(frozen=True)
class SweepSource(TableSource):
    """Detectors. A sweep takes any, so every line can be filled. Rows do not say their backbone."""

    def scope(self, asked: str) -> str:
        return asked

    def line(self, row: PublishedRow, dataset: str) -> RowGroup:
        return RowGroup(dataset, "", row.method)

    def group(self, row: Row, table: PublishedTable) -> RowGroup:
        method = match_published_name(row.method, table.methods) or row.method.strip() or UNNAMED
        return RowGroup(row.dataset, "", method, row.config, format_scheme(row), str(row.calibration))

    def command(self, table: PublishedTable, group: RowGroup, bits: Sequence[str], scope: str) -> str:
        """A sweep with the method's name for its rows, and as those already there, so that the new ones join them.

        A config that is not of this repository stands in angle brackets: where it lies the rows do not say.

        >>> SweepSource("voc_2007_test").command(published_table(6), RowGroup("voc_2007_test", "", "BYOL"), ["8w8a"], "all")
        'ssql-det sweep --config-file configs/detection/voc_r18_c4.yaml --bits 8 MODEL.WEIGHTS <byol.pth> \
SSQL_DET.METHOD BYOL OUTPUT_DIR sweeps/byol'
        """
        name = strip_ours("" if group.method == UNNAMED else group.method)
        file_name = slugify(name) or "detector"
        file, *changed = shlex.split(group.config) or [DETECTOR_CONFIGS.get(group.dataset, f"{group.dataset}.yaml")]
        is_ours = file in DETECTOR_CONFIGS.values() or file in _OTHERS or file.startswith(_FOLDERS)
        path = f"configs/detection/{file}" if is_ours else f"<{file}>"
        elsewhere = [group.dataset] if group.dataset != self.dataset else []
        folder = "-".join([file_name, *([scope] if scope != "all" else []), *elsewhere])
        parts = [
            f"ssql-det sweep --config-file {path}",
            f"--bits {format_bits_option(bits)}",
            *([f"--scope {shlex.quote(scope)}"] if scope != "all" else []),
            f"MODEL.WEIGHTS <{file_name}.pth>",
            f"SSQL_DET.METHOD {shlex.quote(name)}",
            *([shlex.join(changed)] if changed else []),
            *(
                [f"DATASETS.TEST {shlex.quote(f'({group.dataset!r},)')}"]
                if group.dataset not in DETECTOR_CONFIGS
                else []
            ),
            f"OUTPUT_DIR {shlex.quote(f'sweeps/{folder}')}",
            *([f"# scheme: {group.scheme}; calibration: {group.calibration}"] if group.calibration else []),
        ]
        return " ".join(parts)


@dataclass(frozen=True)
class ProbeSource(TableSource):
    """Frozen backbones, by the network that rows name.

    ``data`` is what ``--data`` takes. ``configs`` are those that pretrain a line, by its backbone and method: a line
    without one is published only, as long as there are no rows of it. ``known_as`` is what letters for methods mean;
    ``beside`` are methods that another table prints and rows may be of.
    """

    data: str = ""
    on_cifar: bool = False
    configs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    known_as: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    def scope(self, asked: str) -> str:
        return "backbone"

    def line(self, row: PublishedRow, dataset: str) -> RowGroup:
        return RowGroup(dataset, row.backbone, row.method)

    def group(self, row: Row, table: PublishedTable) -> RowGroup:
        printed = {
            each: method
            for method in (*table.methods, *self.beside)
            for each in (method, self.known_as.get(method, method))
        }
        known = match_published_name(row.method, printed)
        method = printed[known] if known else row.method.strip() or UNNAMED
        network = format_network(row.network, self.on_cifar)
        return RowGroup(
            row.dataset, network, method, format_protocol(row.protocol), format_scheme(row), str(row.calibration)
        )

    def command(self, table: PublishedTable, group: RowGroup, bits: Sequence[str], scope: str) -> str:
        method = self.known_as.get(group.method, group.method)
        pretrained_by = self.configs.get((group.backbone, group.method))
        data = self.data if group.dataset == self.dataset else f"<{group.dataset}>"
        probes, checkpoint, remark = ["linear"], f"<{slugify(strip_ours(method)) or 'backbone'}.pth>", ""
        if group.config:
            probes = group.config.partition(";")[0].split(", ")
            remark = f" # as those there: {group.config}; {group.scheme}; calibration: {group.calibration}"
        elif pretrained_by is None:
            return ""
        elif group.dataset == self.dataset:
            run = Path(pretrained_by).relative_to("configs/pretrain").with_suffix("")
            checkpoint = f"output/{run}/checkpoint.pth"  # where the config writes to
            probes += ["--protocol", "published"]
            remark = f" # after ssql-det pretrain --config-file {pretrained_by}"
        if group.method.startswith("(") and group.method not in self.known_as:  # checkpoints do not tell letters
            probes += ["--method", group.method]
        asked = f"{shlex.join(probes)} --checkpoint {checkpoint} --data {data} --bits {format_bits_option(bits)}"
        return f"ssql-det probe {asked}{remark}"


def format_bits_option(bits: Iterable[str]) -> str:
    """Bit-widths as ``--bits`` takes them.

    >>> format_bits_option(["FP", "8w8a", "2w4a"])
    'FP,8,2w4a'
    """
    return shlex.quote(",".join(_EQUAL.sub(r"\1", width) for width in bits))


_DEPTHS = {"r18": "ResNet-18", "r34": "ResNet-34", "r50": "ResNet-50"}
_SIMSIAM = {"simsiam": "SimSiam", "ssql": "SSQL (ours)"}
_CONTRASTIVE = {"simclr": "SimCLR", "moco": "MoCov2", "ssql_simclr": "SSQL-NCE (ours)"}
_BOTH_WAYS = {"byol": "BYOL", "ssql_byol": "BYOL+SSQL", "moco": "MoCov2", "ssql_moco": "MoCov2+SSQL"}


def _configs(data: str, depth: str, names: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """By network and printed method; ``names`` are those of files, with the methods that they pretrain."""
    return {(_DEPTHS[depth], method): f"configs/pretrain/{data}_{depth}_{name}.yaml" for name, method in names.items()}


def _of_table_1(depth: str) -> dict[tuple[str, str], str]:
    return _configs("cifar10", depth, {**_SIMSIAM, "byol": "BYOL", **_CONTRASTIVE})


_IMAGENET = {
    **_configs("imagenet", "r18", {**_SIMSIAM, "byol": "BYOL"}),
    **_configs("imagenet", "r50", {**_SIMSIAM, "byol": "BYOL", "moco": "MoCov2"}),
}
_ABLATION = {(_DEPTHS["r34"], f"({letter})"): f"configs/pretrain/table8/{letter}.yaml" for letter in "abcdefghi"}
_CIFAR = "cifar10:datasets"
_KINDS: Mapping[int, TableSource] = {
    1: ProbeSource(
        "cifar10", _CIFAR, True, _of_table_1("r18") | _of_table_1("r50"), beside=("BYOL+SSQL", "MoCov2+SSQL")
    ),
    3: ProbeSource("imagenet", "datasets/imagenet", False, _IMAGENET),
    6: SweepSource("voc_2007_test"),
    7: SweepSource("coco_2017_val"),
    8: ProbeSource("cifar10", _CIFAR, True, _ABLATION, {"(a)": "SimSiam", "(i)": "SSQL (ours)"}),
    12: ProbeSource("cifar10", _CIFAR, True, _configs("cifar10", "r18", _BOTH_WAYS)),
}


def get_source(number: int) -> TableSource:
    return _KINDS.get(number, TableSource())


def get_probe_source(number: int) -> ProbeSource:
    """Of a table that linear probes fill.

    >>> get_probe_source(8).known_as
    {'(a)': 'SimSiam', '(i)': 'SSQL (ours)'}
    """
    kind = get_source(number)
    assert isinstance(kind, ProbeSource), f"Table {number} is not of probes"
    return kind


def list_datasets() -> set[str]:
    """Those that rows may be of, as rows name them."""
    return {kind.dataset for kind in _KINDS.values()}
