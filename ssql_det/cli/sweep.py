"""Evaluate one detector at full precision and at few bits, from one copy of weights and one calibration.

KEY VALUE pairs are Detectron2's: MODEL.WEIGHTS names the detector, OUTPUT_DIR the folder of the sweep. A sweep that
was stopped goes on where it was. Several GPUs: --num-gpus N, or torchrun --nproc-per-node N tools/eval_quantized.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import (
    add_calibration,
    add_config_arguments,
    add_num_gpus,
    add_overrides,
    add_scheme,
    calibration_of,
    read_detector_config,
    scheme_of,
    set_up_process,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ssql_det.core.rows import Row
    from ssql_det.quant import Bits

HELP = "a detector at FP, 8, 6, 5 and 4 bits: one row each"
BITS = "FP,8,6,5,4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_num_gpus(parser)
    parser.add_argument("--bits", default=BITS, help="FP, 8 or 2w4a, comma-separated (default: %(default)s)")
    parser.add_argument(
        "--scope", default="all", help="all, or backbone: only what was pretrained (default: %(default)s)"
    )
    add_scheme(parser)
    add_calibration(parser)
    parser.add_argument("--bits-file", metavar="FILE.json", help="bits of single modules: {pattern: bits}")
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.distributed import launch
    from ssql_det.core.errors import UserError
    from ssql_det.detect import SCOPES, make_config_label
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.quant import parse_widths

    widths = parse_widths(options.bits)
    if options.scope not in SCOPES:
        raise UserError(f"--scope is {' or '.join(SCOPES)}, got {options.scope!r}")
    overrides = _bits_file(options.bits_file) if options.bits_file else {}
    plan = QuantizationSettings(options.scope, calibration_of(options), scheme_of(options), overrides)
    cfg = read_detector_config(options, options.overrides)
    name = make_config_label(options.config_file, options.overrides)
    launch(_sweep, cfg, name, widths, plan, processes=options.num_gpus)


def _sweep(cfg, name, widths, plan):  # type: ignore[no-untyped-def]  # the types would import torch
    from ssql_det.core.console import print_table
    from ssql_det.core.distributed import is_main
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.sweep import RESULTS_NAME, sweep
    from ssql_det.report.display_names import format_scheme

    set_up_process()
    model, checkpoint = load_trained_detector(cfg)
    found = list(sweep(cfg, name, model, checkpoint, widths, plan))
    if is_main():
        how = f"{format_scheme(found[0])}, {found[0].calibration}"
        title = f"{checkpoint.display_name} on {found[0].dataset}, scope {plan.scope}, {how}"
        print_table(("bits", *_columns(found)), [_cells(row, found) for row in found], title)
        print(f"rows: {Path(cfg.OUTPUT_DIR) / RESULTS_NAME}")


def _columns(found: list[Row]) -> list[str]:
    """The metrics that every row of a detector has, most telling first."""
    wanted = [f"{task}/{name}" for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")]
    return [name for name in (*wanted, "MB", "GFLOPs", "GBOPs") if all(name in row.metrics for row in found)]


def _cells(row: Row, found: list[Row]) -> list[str]:
    values = [row.metrics[name] for name in _columns(found)]
    return [row.bits, *("-" if value is None else f"{value:.2f}" for value in values)]


def _bits_file(path: str) -> Mapping[str, Bits]:
    import json

    from ssql_det.core.errors import UserError
    from ssql_det.quant import Bits

    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from None
    except (RecursionError, ValueError) as failure:
        raise UserError(f"{path} is not JSON: {failure}") from None
    if not isinstance(content, dict) or not all(isinstance(bits, str) for bits in content.values()):
        raise UserError(f'{path} is to hold bits by pattern, as {{"backbone.bottom_up.res5.*": "8w8a"}}')
    return {pattern: Bits.parse(bits) for pattern, bits in content.items()}
