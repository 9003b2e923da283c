"""The page of a search: what it took and why, AP over size and over bit-operations, and the numbers as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssql_det.core.rows import Row, package_versions
from ssql_det.detect.measurements import AP, average_ap
from ssql_det.detect.search import GBOPS, MB, Candidate, Goal, Search
from ssql_det.quant import Bits
from ssql_det.report.blocks import Block, CodeBlock, Heading, Paragraph, Scatter, Series, Table
from ssql_det.report.document import Document
from ssql_det.report.markup import escape_markup
from ssql_det.report.render_csv import Record, format_csv

_MISSING = "-"
_DIGITS = 6  # behind the point, in CSV files
_METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP")  # those that the rows have are columns
_POINT_COLUMNS = ("data", "assignment", "bits", "overrides", "taken", AP, MB, GBOPS, "predicted loss")
_LOSS_COLUMNS = ("group", "bits", "quantity", "lost")


@dataclass(frozen=True)
class Finding:
    """What a search found: the candidate that it takes, and the rows of the test set, whose last is of this one."""

    search: Search
    goal: Goal
    taken: Candidate
    rows: Sequence[Row]  # at FP, at the uniform bit-widths, and of what was taken if that is none of these

    @property
    def taken_row(self) -> Row:
        return next(row for row in reversed(self.rows) if self.is_taken(row))

    def is_taken(self, row: Row) -> bool:
        overrides = {pattern: str(bits) for pattern, bits in self.taken.overrides.items()}
        return (row.bits, row.overrides) == (str(self.taken.bits), overrides)


def build_page(finding: Finding, title: str, command: str, uses: Sequence[str]) -> Document:
    """``command`` wrote the page; ``uses`` are commands that use the bits file."""
    search, taken = finding.search, finding.taken
    measured = "AP" if search.quantity == AP else f"{search.quantity} (--fast)"
    return Document(
        f"Which bits where: {escape_markup(title)}",
        (
            Paragraph(f"{finding.goal}. Written by `{escape_markup(command)}`."),
            Heading("What was taken"),
            Paragraph(
                f"{_describe(taken)}. On the selection images it has AP {taken.ap:.2f}, the float detector "
                f"{search.float_ap:.2f}."
            ),
            build_group_table(finding),
            Paragraph("These bit-widths are in `bits.json`. The commands that use them:"),
            CodeBlock("\n".join(uses)),
            Heading("On the test set"),
            Paragraph(
                "Full precision, the uniform bit-widths and what was taken, on "
                f"{escape_markup(finding.rows[0].dataset)}, at which the search did not look. AP in the charts is of "
                "boxes, or the mean of boxes and masks."
            ),
            build_row_table(finding),
            *_build_row_charts(finding),
            Heading("On the selection images"),
            Paragraph(
                "Training images, which the detector has learned, so their AP is higher. The predicted loss is the sum "
                f"of the losses of the groups alone, as {measured}, times a factor that fits the uniform bit-widths, "
                "corrected by the assignments above it. Losses do not add up, so one was taken by what was measured."
            ),
            build_candidate_table(finding),
            *_build_candidate_charts(finding),
            Heading("What each group loses alone"),
            Paragraph(f"The rest is float; {_name_loss(search)}, on the selection images."),
            _build_loss_table(search),
            Heading("Environment"),
            CodeBlock("\n".join(f"{name} {version}" for name, version in package_versions().items())),
        ),
    )


def build_group_table(finding: Finding) -> Table:
    rows = [
        (group.pattern, str(bits), f"{losses[choice]:.4f}")
        for group, bits, losses, choice in zip(
            finding.search.groups,
            finding.search.get_bits(finding.taken),
            finding.search.losses,
            finding.taken.assignment,
            strict=True,
        )
    ]
    return Table(("part", "bits", _name_loss(finding.search)), tuple(rows))


def build_row_table(finding: Finding) -> Table:
    metrics = [name for name in _METRICS if any(row.metrics.get(name) is not None for row in finding.rows)]
    rows = []
    for row in finding.rows:
        name = "taken" if finding.is_taken(row) and row.overrides else row.bits
        mark = " (taken)" if finding.is_taken(row) and not row.overrides else ""
        cells = (_format(row.metrics.get(metric)) for metric in (*metrics, MB, GBOPS))
        rows.append((name + mark, *cells))
    return Table(("bits", *metrics, MB, GBOPS), tuple(rows))


def build_candidate_table(finding: Finding) -> Table:
    """The candidates, in the order in which they were measured."""
    rows = [
        (
            each.name + (" (taken)" if each is finding.taken else ""),
            _describe_groups(finding.search, each),
            *(f"{value:.2f}" for value in (each.ap, finding.search.float_ap - each.ap)),
            f"{each.predicted_loss:.4f}",
            *(_format(value) for value in (each.mb, each.gbops)),
        )
        for each in finding.search.candidates.values()
    ]
    return Table(("", "bits of the parts", AP, "lost", "predicted", MB, GBOPS), tuple(rows), text_columns=2)


def build_csv_files(finding: Finding) -> dict[str, str]:
    """The contents of ``search.csv``, the points of the charts, and ``losses.csv``, by file name."""
    search = finding.search
    records: list[Record] = [
        (
            "selection",
            *(each.name, str(each.bits), _format_overrides(each.overrides), "yes" if each is finding.taken else ""),
            *(round(value, _DIGITS) for value in (each.ap, each.mb, each.gbops, each.predicted_loss)),
        )
        for each in search.candidates.values()
    ]
    for row in finding.rows:
        is_taken, name = finding.is_taken(row), finding.taken.name if row.overrides else row.bits
        overrides = _format_overrides({pattern: Bits.parse(bits) for pattern, bits in row.overrides.items()})
        costs = (
            round(value or 0.0, _DIGITS) for value in (average_ap(row.metrics), row.metrics[MB], row.metrics[GBOPS])
        )
        records.append(("test", name, row.bits, overrides, "yes" if is_taken else "", *costs, None))
    losses: list[Record] = [
        (group.pattern, str(bits), search.quantity, round(loss, _DIGITS))
        for group, own, own_losses in zip(search.groups, search.choices, search.losses, strict=True)
        for bits, loss in zip(own, own_losses, strict=True)
    ]
    return {"search.csv": format_csv(_POINT_COLUMNS, records), "losses.csv": format_csv(_LOSS_COLUMNS, losses)}


def _build_loss_table(search: Search) -> Table:
    widths = tuple(dict.fromkeys(bits for own in search.choices for bits in own))
    rows = []
    for group, own, losses in zip(search.groups, search.choices, search.losses, strict=True):
        by_bits = dict(zip(own, losses, strict=True))
        rows.append((group.pattern, *(f"{by_bits[bits]:.4f}" if bits in by_bits else _MISSING for bits in widths)))
    return Table(("part", *map(str, widths)), tuple(rows))


def _build_row_charts(finding: Finding) -> list[Block]:
    uniform = [row for row in finding.rows if not row.overrides and row.bits != str(Bits.FP)]
    groups = {"uniform bit-widths": uniform, "taken": [finding.taken_row]}

    def get_points(quantity: str) -> dict[str, list[tuple[float, float]]]:
        return {
            name: [(row.metrics[quantity] or 0.0, average_ap(row.metrics)) for row in rows]
            for name, rows in groups.items()
        }

    return [_build_chart("test", "test set", quantity, get_points(quantity)) for quantity in (MB, GBOPS)]


def _build_candidate_charts(finding: Finding) -> list[Block]:
    every = [*finding.search.candidates.values()]
    groups = {
        "uniform bit-widths": [each for each in every if each.is_uniform],
        "measured": [each for each in every if not each.is_uniform],
        "taken": [finding.taken],
    }

    def get_points(quantity: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(each.get_cost(quantity), each.ap) for each in members] for name, members in groups.items()}

    return [_build_chart("selection", "selection images", quantity, get_points(quantity)) for quantity in (MB, GBOPS)]


def _build_chart(name: str, data: str, quantity: str, points: Mapping[str, list[tuple[float, float]]]) -> Scatter:
    series = tuple(
        Series(label, tuple(sorted(members)), is_line=index == 0)
        for index, (label, members) in enumerate(points.items())
    )
    return Scatter(f"{name}-{quantity.lower()}", f"AP over {quantity}, {data}", series, quantity, AP)


def _name_loss(search: Search) -> str:
    return "AP lost alone" if search.quantity == AP else f"{search.quantity} alone"


def _describe(candidate: Candidate) -> str:
    bits = f"The uniform bit-width {candidate.bits}" if candidate.is_uniform else f"Assignment {candidate.name}"
    return f"{bits}: {_format(candidate.mb)} {MB}, {_format(candidate.gbops)} {GBOPS}"


def _describe_groups(search: Search, candidate: Candidate) -> str:
    pairs = zip(search.groups, search.get_bits(candidate), strict=True)
    return ", ".join(f"{group.pattern} {bits}" for group, bits in pairs)


def _format_overrides(overrides: Mapping[str, Bits]) -> str:
    return ", ".join(f"{pattern} {bits}" for pattern, bits in overrides.items())


def _format(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
