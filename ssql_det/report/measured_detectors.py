"""Detectors as their result rows show them: the rows that may be averaged, named by what tells them from others.

Rows of one detector differ in seed and checkpoint alone. A backbone that was probed counts as a detector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.display_names import format_protocol, format_scheme
from ssql_det.report.row_groups import Measurement, group_by_bits, list_separate, measure

FLOAT = "FP"
HEADLINE = "4w4a"  # the bit-width that a page begins with, if it was measured
TASKS = {  # by the first part of a metric's name: what it measures, and the metrics that tables show
    "bbox": ("boxes", ("AP", "AP50", "AP75")),
    "segm": ("masks", ("AP", "AP50", "AP75")),
    "linear": ("the linear probe", ("top1",)),
    "knn": ("the nearest neighbours", ("top1",)),
}
_IDENTITY = ("method", "network", "config", "scheme", "scope", "calibration", "protocol")


@dataclass(frozen=True)
class MeasuredDetector:
    """Rows that may be averaged, with a name that tells them from those of the others."""

    name: str
    rows: tuple[Row, ...]

    @cached_property
    def rows_by_bits(self) -> dict[str, list[Row]]:
        return group_by_bits(self.rows)

    def get(self, bits: str, metric: str) -> Measurement | None:
        return measure(row.metrics[metric] for row in self.rows_by_bits.get(bits, ()) if metric in row.metrics)

    def get_class_ap(self, bits: str, name: str) -> float | None:
        """The mean AP of a class, ``bbox/person``; ``None`` without a value."""
        measured = measure(row.class_aps[name] for row in self.rows_by_bits.get(bits, ()) if name in row.class_aps)
        return None if measured is None else measured.mean

    def get_mean(self, bits: str, metric: str) -> float | None:
        measured = self.get(bits, metric)
        return None if measured is None else measured.mean

    def get_loss(self, bits: str, metric: str) -> Measurement | None:
        """What the bit-width loses: the mean over checkpoints that were measured at full precision too."""
        values = {bits: self._get_values(bits, metric) for bits in (FLOAT, bits)}
        losses = [values[FLOAT][key] - value for key, value in values[bits].items() if key in values[FLOAT]]
        return measure(losses)

    def _get_values(self, bits: str, metric: str) -> dict[tuple[str, ...], float]:
        rows = self.rows_by_bits.get(bits, ())
        found = ((_identify_float_network(row), finite_or_none(row.metrics.get(metric))) for row in rows)
        return {key: value for key, value in found if value is not None}

    def choose_headline(self) -> str:
        """4w4a, else the lowest of equally many bits, else the last bit-width; full precision if there is no other."""
        quantized = [bits for bits in self.rows_by_bits if bits != FLOAT]
        uniform = [bits for bits in quantized if bits not in list_separate(quantized)]
        return HEADLINE if HEADLINE in quantized else (uniform or quantized or [FLOAT])[-1]


def list_detectors_by_dataset(rows: Sequence[Row]) -> dict[str, list[MeasuredDetector]]:
    """The detectors of each data set, sorted by its name."""
    datasets = sorted({row.dataset for row in rows})
    return {dataset: list_detectors(row for row in rows if row.dataset == dataset) for dataset in datasets}


def list_detectors(rows: Iterable[Row]) -> list[MeasuredDetector]:
    """The groups of rows of one data set, named by what differs between them.

    A group without full precision gets that of the same weights from another group: no scheme changes it.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    float_rows = {}
    for row in rows:
        groups.setdefault(tuple(_identify(row).items()), []).append(row)
        if row.bits == FLOAT:
            float_rows[_identify_float_network(row)] = row
    identities = [dict(key) for key in groups]
    differing = [field for field in _IDENTITY if len({each[field] for each in identities}) > 1] or ["method"]
    names = (" · ".join(each[field] for field in differing if each[field]) for each in identities)
    return [
        MeasuredDetector(name or "the detector", (*_borrow_float_rows(of_group, float_rows), *of_group))
        for name, of_group in zip(names, groups.values(), strict=True)
    ]


def _borrow_float_rows(rows: Sequence[Row], float_rows: Mapping[tuple[str, ...], Row]) -> Iterator[Row]:
    """Those at full precision that the rows lack."""
    own = {_identify_float_network(row) for row in rows if row.bits == FLOAT}
    for key in dict.fromkeys(map(_identify_float_network, rows)):
        if key not in own and key in float_rows:
            yield float_rows[key]


def _identify(row: Row) -> dict[str, str]:
    """Rows with equal values may be averaged."""
    return {
        "method": row.method or row.checkpoint,
        "network": row.network if row.protocol else "",
        "config": row.config,
        "scheme": format_scheme(row),
        "scope": f"scope {row.scope}",
        "calibration": str(row.calibration),
        "protocol": format_protocol(row.protocol),
    }


def _identify_float_network(row: Row) -> tuple[str, ...]:
    """Equal for rows whose results at full precision are the same."""
    return row.checkpoint_hash or row.checkpoint, str(row.seed), row.config, format_protocol(row.protocol)


# ---- metrics -------------------------------------------------------------------------------------------------------


def list_tasks(rows: Iterable[Row]) -> list[str]:
    """Known tasks of which the rows have the main metric."""
    metrics = {metric for row in rows for metric in row.metrics}
    return [task for task in TASKS if get_main(task) in metrics]


def get_main(task: str) -> str:
    """The metric that a task is judged by.

    >>> get_main("bbox"), get_unit(get_main("linear"))
    ('bbox/AP', '% top-1')
    """
    return f"{task}/{TASKS[task][1][0]}"


def get_unit(metric: str) -> str:
    return metric.rpartition("/")[2].replace("top1", "% top-1")
