"""Rank the parts of a detector by how much it degrades when each alone is quantized to low bit-widths.

Writes a bits file that keeps the most sensitive parts at more bits: `ssql-det sweep --bits 4 --bits-file FILE`. Parts
are measured on training images that have no other use. The measurements are kept in OUTPUT_DIR: started again, an
interrupted analysis goes on, and `ssql-det search` uses them. Several GPUs: --num-gpus N.
"""

from __future__ import annotations

import argparse
import logging

from ssql_det.cli._measuring import add_measuring_arguments, complete_settings, make_settings, read_groups
from ssql_det.cli.arguments import add_overrides, positive_int, read_detector_config, set_up_process

HELP = "rank the parts of a detector by how much quantizing each alone degrades it"
EXAMPLES = (
    "ssql-det sensitivity --config-file toy_voc_narrow_c4 --fast MODEL.WEIGHTS runs/c4/model_final.pth",
    "ssql-det sensitivity --config-file voc_r18_c4 --bits 3 --keep 4 --out bits.json MODEL.WEIGHTS voc.pth",
)
_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_measuring_arguments(parser)
    parser.add_argument("--bits", default="4", help="bit-width of the quantized part (default: %(default)s)")
    parser.add_argument(
        "--keep", type=positive_int, default=2, help="parts that get more bits in the bits file (default: %(default)s)"
    )
    parser.add_argument("--keep-bits", default="8", help="their bit-width (default: %(default)s)")
    parser.add_argument("--out", default="bits.json", help="the bits file to write (default: %(default)s)")
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import check_not_an_input
    from ssql_det.core.launch import launch
    from ssql_det.quant import Bits, parse_bit_widths

    widths, keep_widths = parse_bit_widths(options.bits), parse_bit_widths(options.keep_bits)
    if len(widths) != 1 or len(keep_widths) != 1:
        raise UserError(f"--bits and --keep-bits are one bit-width each, got {options.bits} and {options.keep_bits}")
    if widths[0] == Bits.FP:
        raise UserError("--bits FP quantizes nothing, so nothing degrades; give a low bit-width, as --bits 4")
    settings, file = make_settings(options, widths)
    cfg = read_detector_config(options, options.overrides)
    inputs = [options.config_file, cfg.MODEL.WEIGHTS, *filter(None, [options.quantization])]
    check_not_an_input(options.out, inputs)
    launch(_analyze, cfg, options, widths[0], keep_widths[0], settings, file, processes=options.num_gpus)


def _analyze(cfg, options, bits, keep_bits, settings, file):  # type: ignore[no-untyped-def]  # needs torch
    """On every rank."""
    import json

    from ssql_det.core.config import check_output_dir
    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.core.distributed import is_main
    from ssql_det.core.files import atomic_write
    from ssql_det.core.run_folder import owning_folder
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.groups import list_groups
    from ssql_det.detect.measurements import AP, DISTILLATION, measuring
    from ssql_det.detect.points import detector_points
    from ssql_det.detect.sensitivity import measure_sensitivities, select_overrides, sort_by_degradation

    set_up_process()
    model, checkpoint = load_trained_detector(cfg)
    settings, path = complete_settings(model, settings, file)
    points = detector_points(model, settings.scope, settings.scheme.placement)
    groups = list_groups(points, read_groups(options))
    sha256 = checkpoint.source.sha256 if checkpoint.source else ""
    quantity = DISTILLATION if options.fast else AP
    heading = DISTILLATION if options.fast else "AP lost"
    sensitivities = []
    with owning_folder(check_output_dir(cfg.OUTPUT_DIR)), measuring(cfg, model, sha256, settings, path) as measurer:
        for each in measure_sensitivities(measurer, quantity, groups, bits):
            _logger.info("%s: %s %.4f", each.group.pattern, heading, each.degradation)
            sensitivities.append(each)
    if not is_main():
        return
    sensitivities = sort_by_degradation(sensitivities)
    title = f"{checkpoint.display_name}: one part at {bits}, the rest float"
    cells = [(each.group.pattern, f"{each.degradation:.4f}") for each in sensitivities]
    print_table(("part", heading), cells, title)
    with atomic_write(options.out, "w") as file:
        json.dump(select_overrides(sensitivities, options.keep, keep_bits), file, indent=1)
    words = ("--bits", bits, "--bits-file", options.out, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    print_outcome(options.out, "sweep", "--config-file", options.config_file, *words)
