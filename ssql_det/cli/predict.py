"""Run a detector on your images at several bit-widths: draw the detections side by side, and write COCO's JSON.

KEY VALUE pairs and images come last: MODEL.WEIGHTS FILE image.jpg folder. Quantized activations need a calibration:
that of a file that `ssql-det quantize` or a sweep of the same weights made (--quantization), with its repairs,
otherwise one on the config's training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssql_det.cli.arguments import (
    add_bits,
    add_calibration,
    add_config_arguments,
    add_quantization,
    add_scope,
    check_scope,
    make_calibration,
    make_scheme,
    parse_scheme,
    read_detector_config,
)

HELP = "boxes and masks on your own images, at several bit-widths side by side"
EXAMPLES = (
    "ssql-det predict --config-file toy_voc_narrow_c4 MODEL.WEIGHTS runs/c4/model_final.pth photo.jpg folder",
    "ssql-det predict --config-file zoo/mask_r50_fpn --bits FP,8,4 --out drawn MODEL.WEIGHTS model_final.pkl photo.jpg",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_bits(parser, "FP,4")
    add_scope(parser, has_file=True)
    add_quantization(parser)
    add_calibration(parser, has_file=True)
    parser.add_argument("--score", type=float, default=0.5, help="least score of a detection (default: %(default)s)")
    parser.add_argument("--out", default="predictions", help="folder for pictures and JSON (default: %(default)s)")
    parser.add_argument("rest", metavar="KEY VALUE ... IMAGE ...", nargs=argparse.REMAINDER, help="config, then images")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import print_outcome
    from ssql_det.core.errors import UserError
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.evaluation_data import select_calibration_images
    from ssql_det.detect.points import detector_points
    from ssql_det.detect.predict import PAGE_NAME, detect_at_bit_widths, save_predictions
    from ssql_det.detect.quantized_evaluation import calibrate_detector
    from ssql_det.detect.saved_quantization import load_with_settings
    from ssql_det.images.reading import check_output_paths, find_images
    from ssql_det.quant import Quantization, parse_bit_widths
    from ssql_det.quant.scheme import NORM_CORRECTION

    overrides, images = _split_keys_and_images(options.rest)
    paths, widths = find_images(images), parse_bit_widths(options.bits)
    check_output_paths(Path(options.out), paths)
    scope, scheme = check_scope(options), make_scheme(options)
    if not 0 <= options.score <= 1:
        raise UserError(f"--score must be 0 to 1, got {options.score}")
    cfg = read_detector_config(options, overrides)
    model, _ = load_trained_detector(cfg)
    batches: Sequence[Any] = ()
    if options.quantization is not None:
        given = (options.scope, parse_scheme(options), options.calib_images, options.calib_seed)
        quantization, _ = load_with_settings(Path(options.quantization), model, *given)
        for bits in widths:
            quantization.check_repairs(bits)
    else:
        quantization = Quantization(model, detector_points(model, scope, scheme.placement), scheme)
        if any(bits.act is not None for bits in widths) or NORM_CORRECTION in scheme.repairs:
            batches = select_calibration_images(cfg, make_calibration(options))
            calibrate_detector(quantization, batches)
    detections_by_bits = detect_at_bit_widths(cfg, quantization, paths, widths, options.score, batches)
    save_predictions(Path(options.out), cfg, paths, detections_by_bits)
    for bits, detections in detections_by_bits.items():
        print(f"{bits}: {sum(map(len, detections))} objects of score {options.score} or more in {len(paths)} image(s)")
    weights = ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    print_outcome(options.out)
    print_outcome(Path(options.out) / PAGE_NAME, "sensitivity", "--config-file", options.config_file, *weights)


# SSQL is the former name of SSQL_DET: its keys are refused with a message that gives the new name.
_ROOTS = ("MODEL", "INPUT", "DATASETS", "DATALOADER", "TEST", "SOLVER", "SSQL_DET", "OUTPUT_DIR", "SEED", "SSQL")


def _split_keys_and_images(rest: list[str]) -> tuple[list[str], list[str]]:
    """Config keys, in pairs with their values, then images."""
    from ssql_det.core.errors import UserError

    pairs = 0
    while pairs + 1 < len(rest) and _is_key(rest[pairs]):
        pairs += 2
    for option in rest[pairs:]:
        if option.startswith("--"):
            raise UserError(f"{option} must come before the KEY VALUE pairs and the images")
    return rest[:pairs], rest[pairs:]


def _is_key(text: str) -> bool:
    """
    >>> _is_key("MODEL.WEIGHTS"), _is_key("IMG_1.JPG")
    (True, False)
    """
    return text.split(".")[0] in _ROOTS
