"""Evaluate one detector at full precision and at low bit-widths, from one copy of weights and one calibration.

KEY VALUE pairs override the config, as in Detectron2: MODEL.WEIGHTS is the detector, OUTPUT_DIR the folder of the
sweep. Started again, an interrupted sweep continues. With --quantization, the scheme, the calibration and the repairs
are those of a file that `ssql-det quantize` made; the sweep keeps a copy of it. Several GPUs: --num-gpus N, or
torchrun --nproc-per-node N tools/eval_quantized.py.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import (
    add_bits,
    add_bits_file,
    add_calibration,
    add_config_arguments,
    add_num_gpus,
    add_overrides,
    add_quantization,
    add_scope,
    check_scope,
    make_calibration,
    make_scheme,
    parse_scheme,
    read_bits_file,
    read_detector_config,
    set_up_process,
)
from ssql_det.core.rows import RUNTIMES

if TYPE_CHECKING:
    from ssql_det.core.rows import Row

HELP = "a detector at FP, 8, 6, 5 and 4 bits: one row each"
EXAMPLES = (
    "ssql-det sweep --config-file toy_voc_narrow_c4 MODEL.WEIGHTS runs/c4/model_final.pth OUTPUT_DIR sweeps/c4",
    "ssql-det sweep --config-file coco_mask_r50_fpn --bits FP,4 --scheme act=mse MODEL.WEIGHTS fpn.pth OUTPUT_DIR out",
)
BITS = "FP,8,6,5,4"
_logger = logging.getLogger(__name__)
_HEADINGS = {"GFLOPs": "GMACs"}  # what rows call GFLOPs are multiply-adds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_num_gpus(parser)
    add_bits(parser, BITS)
    add_scope(parser, has_file=True)
    add_quantization(parser)
    add_calibration(parser, has_file=True)
    add_bits_file(parser)
    parser.add_argument(
        "--engine",
        choices=RUNTIMES,
        help="export the detector, and evaluate the exported file (default: evaluate it with torch)",
    )
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.launch import launch
    from ssql_det.detect import make_config_label
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.quant import parse_bit_widths

    widths, scope = parse_bit_widths(options.bits), check_scope(options)
    overrides = read_bits_file(options.bits_file)
    settings = QuantizationSettings(scope, make_calibration(options), make_scheme(options), overrides)
    file = None
    if options.quantization is not None:
        given = {"scope": options.scope, "scheme": parse_scheme(options)}
        file = (Path(options.quantization), given | {"images": options.calib_images, "seed": options.calib_seed})
    cfg = read_detector_config(options, options.overrides)
    config_label = make_config_label(options.config_file, options.overrides)
    if options.engine is not None:
        from ssql_det.deploy.export import check_installed

        check_installed()
    launch(_sweep, cfg, config_label, widths, settings, file, options.engine, processes=options.num_gpus)


def _sweep(cfg, config_label, widths, settings, file, runtime):  # type: ignore[no-untyped-def]  # needs torch
    """``file``: a quantization file, and the settings that are given beside it. ``runtime``: that of an exported
    detector, or ``None``."""
    from dataclasses import replace

    from ssql_det.cli.report import write_page_beside
    from ssql_det.core.config import check_output_dir
    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.core.distributed import is_main
    from ssql_det.core.rows import format_metric
    from ssql_det.core.run_folder import owning_folder
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.saved_quantization import load_with_settings
    from ssql_det.detect.sweep import RESULTS_NAME, sweep
    from ssql_det.report.display_names import format_scheme

    set_up_process()
    model, checkpoint = load_trained_detector(cfg)
    path = None
    if file is not None:
        path, given = file
        _, settings_of_file = load_with_settings(path, model, **given)
        settings = replace(settings_of_file, overrides=settings.overrides)
    engine = None
    if runtime is not None:
        from ssql_det.deploy.evaluation import make_runtime_engine
        from ssql_det.quant.integer_form import check_integer_scheme

        check_integer_scheme(settings.scheme, widths, settings.overrides, path)
        engine = make_runtime_engine(runtime, cfg, checkpoint, config_label, settings.scope, Path(cfg.OUTPUT_DIR))
    rows = []
    with owning_folder(check_output_dir(cfg.OUTPUT_DIR)):
        for row in sweep(cfg, config_label, model, checkpoint, widths, settings, path, engine):
            rows.append(row)
            _logger.info("%s: %s", row.bits, ", ".join(f"{name} {row.metrics[name]:.2f}" for name in _select_ap(row)))
    if is_main():
        quantization = f"scope {settings.scope}, {format_scheme(rows[0])}, {rows[0].calibration}"
        columns = _select_metrics(rows)
        cells = [[row.bits, *(format_metric(row.metrics[name]) for name in columns)] for row in rows]
        headings = [_HEADINGS.get(name, name) for name in columns]
        print_table(("bits", *headings), cells, f"{checkpoint.display_name} on {rows[0].dataset}, {quantization}")
        results = Path(cfg.OUTPUT_DIR) / RESULTS_NAME
        page = write_page_beside(results)
        print_outcome(results)
        print_outcome(page, "report", results, "OTHER_ROWS")


def _select_ap(row: Row) -> list[str]:
    return [name for name in ("bbox/AP", "segm/AP") if row.metrics.get(name) is not None]


def _select_metrics(rows: list[Row]) -> list[str]:
    """The metrics and costs that all rows have, in the order of the table's columns."""
    metrics = [f"{task}/{name}" for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")]
    return [name for name in (*metrics, "MB", "GFLOPs", "GBOPs") if all(name in row.metrics for row in rows)]
