"""Rank the parts of a detector by how much it degrades when each alone is quantized to low bit-widths.

Writes a bits file that keeps the most sensitive parts at more bits: `ssql-det sweep --bits 4 --bits-file FILE`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import (
    add_calibration,
    add_config_arguments,
    add_overrides,
    add_quantization,
    make_calibration,
    make_scheme,
    parse_scheme,
    positive_int,
    read_detector_config,
)

if TYPE_CHECKING:
    from torch import nn

    from ssql_det.d2 import CfgNode
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.detect.sensitivity import GroupSensitivity
    from ssql_det.quant import Bits

HELP = "rank the parts of a detector by how much quantizing each alone degrades it"
EXAMPLES = (
    "ssql-det sensitivity --config-file toy_voc_narrow_c4 --fast MODEL.WEIGHTS runs/c4/model_final.pth",
    "ssql-det sensitivity --config-file voc_r18_c4 --bits 3 --keep 4 --out bits.json MODEL.WEIGHTS voc.pth",
)
_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--bits", default="4", help="bit-width of the quantized part (default: %(default)s)")
    parser.add_argument("--fast", action="store_true", help="rank by the error of features instead of AP")
    add_quantization(parser, "; its scheme must learn nothing, as it would learn for all parts together")
    add_calibration(parser, has_file=True)
    parser.add_argument(
        "--keep", type=positive_int, default=2, help="parts that get more bits in the bits file (default: %(default)s)"
    )
    parser.add_argument("--keep-bits", default="8", help="their bit-width (default: %(default)s)")
    parser.add_argument("--out", default="bits.json", help="the bits file to write (default: %(default)s)")
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    import json

    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import atomic_write, check_not_an_input
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.detect.saved_quantization import load_with_settings
    from ssql_det.detect.sensitivity import select_overrides, sort_by_degradation
    from ssql_det.quant import Bits, parse_bit_widths

    widths, keep_widths = parse_bit_widths(options.bits), parse_bit_widths(options.keep_bits)
    if len(widths) != 1 or len(keep_widths) != 1:
        raise UserError(f"--bits and --keep-bits are one bit-width each, got {options.bits} and {options.keep_bits}")
    if widths[0] == Bits.FP:
        raise UserError("--bits FP quantizes nothing, so nothing degrades; give a low bit-width, as --bits 4")
    scheme, files = make_scheme(options), [options.quantization] if options.quantization else []
    cfg = read_detector_config(options, options.overrides)
    check_not_an_input(options.out, [options.config_file, cfg.MODEL.WEIGHTS, *files])
    if not options.fast and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty, and the AP is measured on it; name a data set there, or use --fast")
    model, checkpoint = load_trained_detector(cfg)
    measure = _measure_by_features if options.fast else _measure_by_ap
    settings, path = QuantizationSettings("all", make_calibration(options), scheme), None
    if options.quantization is not None:
        path = Path(options.quantization)
        given = ("all", parse_scheme(options), options.calib_images, options.calib_seed)
        _, settings = load_with_settings(path, model, *given)
        if settings.scheme.learned_repairs:
            raise UserError(
                f"{path} has the scheme {settings.scheme}, which learned for all parts together, not for each alone; "
                "use --scheme without what is learned, such as act=mse, norms=matched"
            )
    quantity = "relative error" if options.fast else "AP lost"
    sensitivities = []
    for each in measure(cfg, model, settings, widths[0], path):
        _logger.info("%s: %s %.4f", each.pattern, quantity, each.degradation)
        sensitivities.append(each)
    sensitivities = sort_by_degradation(sensitivities)
    title = f"{checkpoint.display_name}: one part at {widths[0]}, the rest float"
    print_table(("part", quantity), [(each.pattern, f"{each.degradation:.4f}") for each in sensitivities], title)
    with atomic_write(options.out, "w") as file:
        json.dump(select_overrides(sensitivities, options.keep, keep_widths[0]), file, indent=1)
    words = ("--bits", widths[0], "--bits-file", options.out, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    print_outcome(options.out, "sweep", "--config-file", options.config_file, *words)


def _measure_by_features(
    cfg: CfgNode, model: nn.Module, settings: QuantizationSettings, bits: Bits, file: Path | None
) -> Iterator[GroupSensitivity]:
    from ssql_det.detect.evaluation_data import select_calibration_images
    from ssql_det.detect.quantized_evaluation import build_calibrated_quantization
    from ssql_det.detect.saved_quantization import load_with_images
    from ssql_det.detect.sensitivity import measure_feature_errors

    if file is None:
        batches = select_calibration_images(cfg, settings.calibration)
        quantization = build_calibrated_quantization(cfg, model, settings, batches)
    else:
        quantization, batches = load_with_images(file, cfg, model, settings)
    return measure_feature_errors(quantization, bits, batches)


def _measure_by_ap(
    cfg: CfgNode, model: nn.Module, settings: QuantizationSettings, bits: Bits, file: Path | None
) -> Iterator[GroupSensitivity]:
    from ssql_det.detect.evaluation_data import build_evaluation_loader
    from ssql_det.detect.quantized_evaluation import evaluate_quantized, prepare_evaluation
    from ssql_det.detect.saved_quantization import load_with_images
    from ssql_det.detect.sensitivity import GroupSensitivity, list_groups
    from ssql_det.quant import Bits

    dataset = cfg.DATASETS.TEST[0]
    images = None if file is None else load_with_images(file, cfg, model, settings)[1]
    context = prepare_evaluation(
        cfg, model, settings, dataset, build_evaluation_loader(cfg, dataset), images, quantization_file=file
    )

    def get_ap(overrides: dict[str, Bits]) -> float:
        return evaluate_quantized(context, Bits.FP, overrides)[0]["bbox/AP"]

    float_ap = get_ap({})
    for group in list_groups(context.quantization.points):
        yield GroupSensitivity(group, float_ap - get_ap({group: bits}))
