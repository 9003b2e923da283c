"""Printing results, flattening them, and comparing them with expected results."""

from __future__ import annotations

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from ..config import CfgNode

_logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the metrics of each task as two lines of comma-separated values, without those of individual classes."""
    assert isinstance(results, Mapping), results
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            _logger.info(f"copypaste: {task}={metrics}")
            continue
        shown = {name: value for name, value in metrics.items() if "-" not in name}
        _logger.info(f"copypaste: Task: {task}")
        _logger.info("copypaste: " + ",".join(shown))
        _logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in shown.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Exit with 1 unless results agree with ``cfg.TEST.EXPECTED_RESULTS``: (task, metric, value, tolerance)."""
    expected_results = cfg.TEST.EXPECTED_RESULTS
    if not expected_results:
        return True
    for task, metric, expected, tolerance in expected_results:
        actual = results[task].get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - expected) > tolerance:
            _logger.error("The results are not those expected.")
            _logger.error(f"Expected: {expected_results}")
            _logger.error(f"Actual: {pprint.pformat(results)}")
            sys.exit(1)
    _logger.info("The results are those expected.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """
    >>> flatten_results_dict({"bbox": {"AP": 40.2, "AP50": 61.0}, "seconds": 3})
    {'bbox/AP': 40.2, 'bbox/AP50': 61.0, 'seconds': 3}
    """
    flat: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": each for inner, each in flatten_results_dict(value).items()}
        else:
            flat[name] = value
    return flat
