"""The published tables of SSQL as values, read from ``published/ssql_table<number>.json``.

Source: Y.-H. Cao, P. Sun, Y. Huang, J. Wu, S. Zhou, ECCV 2022, https://arxiv.org/abs/2207.05432. Figures are per
cent, as printed; a file's ``suspect`` lists those that look misprinted. Metrics are spelled as in result rows.

>>> table = load_published_table(6)
>>> table.find("SSQL (ours)").figures[Column("4w4a", "bbox/AP50")]
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
_SETTINGS = {
    "q_pred": "quantized predictions",
    "q_target": "quantized targets",
    "aux": "auxiliary loss",
    "w_bits": "weight bits",
    "a_bits": "activation bits",
}


@dataclass(frozen=True)
class Column:
    """A metric at a bit-width. Table 8 also has a column over bit-widths, ``Avg.``."""

    bits: str
    metric: str


@dataclass(frozen=True)
class PublishedRow:
    """One line of a table. ``None``: the table does not say (epochs), or has a dash there (a figure).

    ``settings`` is what else names the line, as the switches of the ablation in Table 8.
    """

    method: str
    backbone: str
    dataset: str
    epochs: int | None
    settings: Mapping[str, str | bool]
    figures: Mapping[Column, float | None]

    @property
    def described(self) -> str:
        """Its settings in words.

        >>> load_published_table(8).find("(e)").described
        'quantized predictions, weight bits 6, activation bits 6'
        """
        chosen = {_SETTINGS[key]: value for key, value in self.settings.items() if value not in (False, "-")}
        words = [name if value is True else f"{name} {value}".replace("~", " to ") for name, value in chosen.items()]
        return ", ".join(words) or ("nothing quantized" if self.settings else "")


@dataclass(frozen=True)
class PublishedTable:
    number: int
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[PublishedRow, ...]
    suspect: tuple[str, ...]

    @property
    def bits(self) -> tuple[str, ...]:
        """Its bit-widths, and what is printed over them, each once, in the printed order."""
        return tuple(dict.fromkeys(column.bits for column in self.columns))

    @property
    def widths(self) -> tuple[str, ...]:
        return tuple(bits for bits in self.bits if _BITS.fullmatch(bits))

    @property
    def averages(self) -> tuple[str, ...]:
        """What of ``bits`` is no bit-width but the mean over all of them."""
        return tuple(bits for bits in self.bits if bits not in self.widths)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.metric for column in self.columns))

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def find(self, method: str) -> PublishedRow:
        """The line of a method, by its printed name; for tables that name a method once."""
        found = [row for row in self.rows if row.method == method]
        if len(found) != 1:
            known = ", ".join(self.methods)
            raise KeyError(f"{method!r} names {len(found)} lines of Table {self.number}; it has: {known}")
        return found[0]


@cache
def load_published_table(number: int) -> PublishedTable:
    """A table of the paper by its number."""
    if number not in TABLE_NUMBERS:
        raise UserError(f"there is no published Table {number} here; there are {', '.join(map(str, TABLE_NUMBERS))}")
    text = (files("ssql_det.report") / "published" / f"ssql_table{number}.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    columns = tuple(_column(heading, content["metrics"]) for heading in content["columns"])
    defaults = {key: content[key] for key in ("dataset", "backbone", "epochs") if key in content}
    return PublishedTable(
        number=number,
        title=content["title"],
        source=content["source"],
        columns=columns,
        rows=tuple(_row(defaults | row, columns) for row in content["rows"]),
        suspect=tuple(content.get("suspect", ())),
    )


def _column(heading: str, metrics: Mapping[str, str]) -> Column:
    """Read a printed heading.

    >>> _column("4w4a mask AP", {"mask AP": "segm/AP"})
    Column(bits='4w4a', metric='segm/AP')
    """
    bits = _BITS.search(heading)
    if bits is None:
        return Column(heading, metrics[""])
    return Column(bits.group(), metrics[(heading[: bits.start()] + heading[bits.end() :]).strip()])


def _row(content: Mapping[str, Any], columns: tuple[Column, ...]) -> PublishedRow:
    of_its_own = ("method", "id", "backbone", "dataset", "epochs", "values")
    return PublishedRow(
        method=content.get("method") or content["id"],
        backbone=content["backbone"],
        dataset=content["dataset"],
        epochs=content.get("epochs"),
        settings={key: value for key, value in content.items() if key not in of_its_own},
        figures=dict(zip(columns, content["values"], strict=True)),
    )
