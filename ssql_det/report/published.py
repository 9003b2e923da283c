"""The published tables of SSQL as values, read from ``published/ssql_table<number>.json``.

Source: Y.-H. Cao, P. Sun, Y. Huang, J. Wu, S. Zhou, ECCV 2022, https://arxiv.org/abs/2207.05432. Values are percent,
as printed; ``possible_misprints`` describes those that look wrong. Metrics are named as in result rows. "(ours)" in the
name of a method is printed in the paper and means its authors.

>>> load_published_table(6).find_row("SSQL (ours)").values[Column("4w4a", "bbox/AP50")]
61.2
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ssql_det.core.errors import UserError

TABLE_NUMBERS = (1, 3, 4, 5, 6, 7, 8, 12, 13)
_BITS = re.compile(r"FP|\d+w\d+a")
_SETTING_NAMES = {
    "q_pred": "quantized predictions",
    "q_target": "quantized targets",
    "aux": "auxiliary loss",
    "w_bits": "weight bits",
    "a_bits": "activation bits",
}


@dataclass(frozen=True)
class Column:
    """A metric at a bit-width; in Table 8 also its mean over the table's bit-widths, whose ``bits`` are ``Avg.``."""

    bits: str  # FP, or for example 4w4a: 4-bit weights and activations
    metric: str  # for example bbox/AP50


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table. A value is ``None`` where a dash is printed.

    ``settings`` distinguish the rows of the ablation (Table 8), whose method is only a letter; other tables have none.
    """

    method: str
    backbone: str
    dataset: str  # in Tables 6 and 7 as in result rows, in the others as printed
    epochs: int | None  # of pretraining; None if the table does not give them
    settings: Mapping[str, str | bool]
    values: Mapping[Column, float | None]

    @property
    def settings_text(self) -> str:
        """
        >>> load_published_table(8).find_row("(e)").settings_text
        'quantized predictions, weight bits 6, activation bits 6'
        """
        enabled = {_SETTING_NAMES[key]: value for key, value in self.settings.items() if value not in (False, "-")}
        texts = [name if value is True else f"{name} {value}".replace("~", " to ") for name, value in enabled.items()]
        return ", ".join(texts) or ("nothing quantized" if self.settings else "")


@dataclass(frozen=True)
class PublishedTable:
    number: int
    title: str
    citation: str
    columns: tuple[Column, ...]
    rows: tuple[PublishedRow, ...]
    possible_misprints: tuple[str, ...]

    @property
    def column_bits(self) -> tuple[str, ...]:
        """The distinct ``bits`` of the columns in the printed order: `bit_widths`, then `average_names`."""
        return tuple(dict.fromkeys(column.bits for column in self.columns))

    @property
    def bit_widths(self) -> tuple[str, ...]:
        """``FP``, and the bit-widths of quantized networks."""
        return tuple(bits for bits in self.column_bits if _BITS.fullmatch(bits))

    @property
    def average_names(self) -> tuple[str, ...]:
        """``Avg.`` in Table 8, whose last column is the mean over all bit-widths; the other tables have none."""
        return tuple(bits for bits in self.column_bits if bits not in self.bit_widths)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.metric for column in self.columns))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def find_row(self, method: str) -> PublishedRow:
        """The row of a method by its printed name; an error unless there is exactly one."""
        rows = [row for row in self.rows if row.method == method]
        if len(rows) != 1:
            raise KeyError(f"Table {self.number} has {len(rows)} rows of {method!r}; it has {', '.join(self.methods)}")
        return rows[0]


@cache
def load_published_table(number: int) -> PublishedTable:
    if number not in TABLE_NUMBERS:
        raise UserError(f"there is no published Table {number}; choose one of {', '.join(map(str, TABLE_NUMBERS))}")
    text = (files("ssql_det.report") / "published" / f"ssql_table{number}.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    columns = tuple(_parse_heading(heading, content["metrics"]) for heading in content["columns"])
    defaults = {key: content[key] for key in ("dataset", "backbone", "epochs") if key in content}
    return PublishedTable(
        number=number,
        title=content["title"],
        citation=content["source"],
        columns=columns,
        rows=tuple(_parse_row(defaults | row, columns) for row in content["rows"]),
        possible_misprints=tuple(content.get("suspect", ())),
    )


def _parse_heading(heading: str, metrics: Mapping[str, str]) -> Column:
    """Read a printed heading. ``metrics``: names in result rows by printed name, ``""`` where the heading has none.

    >>> _parse_heading("4w4a mask AP", {"mask AP": "segm/AP"})
    Column(bits='4w4a', metric='segm/AP')
    """
    bits = _BITS.search(heading)
    if bits is None:
        return Column(heading, metrics[""])
    return Column(bits.group(), metrics[(heading[: bits.start()] + heading[bits.end() :]).strip()])


def _parse_row(content: Mapping[str, Any], columns: tuple[Column, ...]) -> PublishedRow:
    keys_without_settings = ("method", "id", "backbone", "dataset", "epochs", "values")  # id: an ablation's letter
    return PublishedRow(
        method=content.get("method") or content["id"],
        backbone=content["backbone"],
        dataset=content["dataset"],
        epochs=content.get("epochs"),
        settings={key: value for key, value in content.items() if key not in keys_without_settings},
        values=dict(zip(columns, content["values"], strict=True)),
    )
