"""Kinds of published tables: which rows are of one, which line a row is of, and the command that fills a line.

`producing` says which table is of which kind.

>>> Sweep("voc_2007_test").line(published_table(6).find("BYOL"), "toy_voc_2007_test")
Group(dataset='toy_voc_2007_test', backbone='', method='BYOL', config='', scheme='', calibration='')
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssql_det.core.rows import Row
from ssql_det.report.filling import as_option, filling_command
from ssql_det.report.grouping import UNNAMED, Group
from ssql_det.report.names import network_name, plain_name, published_name, slug
from ssql_det.report.published import PublishedRow, PublishedTable
from ssql_det.report.wording import described, scheme_of


@dataclass(frozen=True)
class Kind:
    """By itself: nothing here fills it yet, all of it is published only. ``dataset`` is as rows name it."""

    dataset: str = ""

    def scope(self, asked: str) -> str:
        """That of its rows."""
        return ""

    def line(self, row: PublishedRow, dataset: str) -> Group:
        """What names a published line; its data set is the one that rows are of."""
        return Group(row.dataset, row.backbone, row.method)

    def group(self, row: Row, table: PublishedTable) -> Group:
        raise NotImplementedError("no row is of a table that nothing fills")

    def command(self, table: PublishedTable, group: Group, bits: Sequence[str], scope: str) -> str:
        """What fills a line at these bits; nothing for one that is published only."""
        return ""


@dataclass(frozen=True)
class Sweep(Kind):
    """Detectors. A sweep takes any, so every line can be filled. Rows do not say their backbone."""

    def scope(self, asked: str) -> str:
        return asked

    def line(self, row: PublishedRow, dataset: str) -> Group:
        return Group(dataset, "", row.method)

    def group(self, row: Row, table: PublishedTable) -> Group:
        method = published_name(row.method, table.methods) or row.method.strip() or UNNAMED
        return Group(row.dataset, "", method, row.config, scheme_of(row), str(row.calibration))

    def command(self, table: PublishedTable, group: Group, bits: Sequence[str], scope: str) -> str:
        method = "" if group.method == UNNAMED else group.method
        return filling_command(table.number, method, bits, scope, group)


@dataclass(frozen=True)
class Probe(Kind):
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

    def line(self, row: PublishedRow, dataset: str) -> Group:
        return Group(dataset, row.backbone, row.method)

    def group(self, row: Row, table: PublishedTable) -> Group:
        printed = {
            each: method
            for method in (*table.methods, *self.beside)
            for each in (method, self.known_as.get(method, method))
        }
        known = published_name(row.method, printed)
        method = printed[known] if known else row.method.strip() or UNNAMED
        network = network_name(row.network, self.on_cifar)
        return Group(row.dataset, network, method, described(row.protocol), scheme_of(row), str(row.calibration))

    def command(self, table: PublishedTable, group: Group, bits: Sequence[str], scope: str) -> str:
        method = self.known_as.get(group.method, group.method)
        pretrained_by = self.configs.get((group.backbone, group.method))
        data = self.data if group.dataset == self.dataset else f"<{group.dataset}>"
        probes, checkpoint, remark = ["linear"], f"<{slug(plain_name(method)) or 'backbone'}.pth>", ""
        if group.config:
            probes = group.config.partition(";")[0].split(", ")
            remark = f" # as those there: {group.config}; {group.scheme}; calibration: {group.calibration}"
        elif pretrained_by is None:
            return ""
        elif group.dataset == self.dataset:
            checkpoint = f"{_output_of(pretrained_by)}/checkpoint.pth"
            probes += ["--protocol", "published"]
            remark = f" # after ssql-det pretrain --config-file {pretrained_by}"
        if group.method.startswith("(") and group.method not in self.known_as:  # checkpoints do not tell letters
            probes += ["--method", group.method]
        asked = f"{shlex.join(probes)} --checkpoint {checkpoint} --data {data} --bits {as_option(bits)}"
        return f"ssql-det probe {asked}{remark}"


def _output_of(config: str) -> str:
    """Where a config of the repository writes to.

    >>> _output_of("configs/pretrain/table8/a.yaml")
    'output/table8/a'
    """
    return f"output/{Path(config).relative_to('configs/pretrain').with_suffix('')}"
