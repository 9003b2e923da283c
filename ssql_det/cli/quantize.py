"""Quantize a detector or a backbone, and win back without labels what few bits cost: one file for all evaluations.

KEY VALUE pairs override the config, as in Detectron2: MODEL.WEIGHTS is the detector. A backbone is given by
--checkpoint and --data instead of --config-file. The repairs are those of the scheme: learned rounding (weight=brecq),
learned activation steps (act=lsq), matched norms (norms=matched), tuning (tune=200). They learn from training images
without labels: those for reconstruction are other ones than those for calibration. --scheme auto, of a detector, tries
the cheap schemes on images of their own and takes the one closest to the float detector; 'auto, tune=200' tunes it. The
weights are not changed. Started again, an interrupted run goes on, and other bit-widths are added to the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import (
    add_bits,
    add_bits_file,
    add_calibration,
    add_config_arguments,
    add_device,
    add_image_options,
    add_overrides,
    add_scheme,
    add_scope,
    check_scope,
    read_bits_file,
    read_detector_config,
    seed_int,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ssql_det.core.rows import Calibration
    from ssql_det.detect.evaluation_data import RoleImages
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.ptq import RepairResult
    from ssql_det.quant import Bits, Scheme

HELP = "one file with what few bits need: ranges, learned rounding, matched norms"
EXAMPLES = (
    "ssql-det quantize --config-file voc_r18_c4 --scheme 'weight=brecq, act=lsq, tune=200' MODEL.WEIGHTS voc.pth",
    "ssql-det quantize --checkpoint runs/ssql/checkpoint.pth --data toy/crops --scheme norms=matched --bits 3,2w4a",
)
BITS = "4,2w4a"
_RECONSTRUCTION_IMAGES = 256  # as many as for calibration
_SELECTION_IMAGES = 64
_OF_DETECTORS, _OF_BACKBONES = ("scope", "coco_train", "coco_val"), ("data", "recipe", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, required=False)
    parser.add_argument("--checkpoint", metavar="FILE", help="a backbone, in any format that convert reads")
    parser.add_argument("--data", help="of a backbone: a folder with train of class folders, or cifar10:FOLDER")
    add_image_options(parser)
    add_device(parser)
    add_bits(parser, BITS)
    add_bits_file(parser)
    add_scope(parser)
    add_scheme(parser)
    add_calibration(parser)
    parser.add_argument(
        "--reconstruction-images",
        type=seed_int,
        help=f"more training images, from which the repairs learn (default: {_RECONSTRUCTION_IMAGES} if any does)",
    )
    parser.add_argument(
        "--selection-images",
        type=seed_int,
        help=f"more training images, on which --scheme auto compares schemes (default: {_SELECTION_IMAGES} for auto)",
    )
    parser.add_argument("--out", default="q.safetensors", help="the file to write, or to add to (default: %(default)s)")
    add_overrides(parser, "MODEL.WEIGHTS FILE")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.core.errors import UserError
    from ssql_det.detect.selection import parse_auto
    from ssql_det.ptq.quantize import SUFFIX, check_role_images
    from ssql_det.quant import Bits, Scheme, parse_bit_widths

    is_auto = (start := parse_auto(options.scheme)) is not None
    scheme = start or Scheme.parse(options.scheme)
    widths, overrides = parse_bit_widths(options.bits), read_bits_file(options.bits_file)
    if Bits.FP in widths:
        raise UserError("--bits has FP, which needs no quantization: evaluations have it anyway; leave it out")
    scheme.check_bits([*widths, *overrides.values()])
    calibration = _make_calibration(options, scheme, is_auto)
    check_role_images(scheme, calibration)
    if Path(options.out).suffix != SUFFIX:
        raise UserError(f"--out must end in {SUFFIX}, got {options.out}")
    if (options.config_file is None) == (options.checkpoint is None):
        raise UserError("quantize needs either --config-file, of a detector, or --checkpoint, of a backbone")
    if options.checkpoint is None:
        outcome = _quantize_detector(options, scheme, is_auto, calibration, widths, overrides)
    elif is_auto:
        raise UserError("--scheme auto compares detectors; name the scheme of a backbone, such as norms=matched")
    else:
        outcome = _quantize_backbone(options, scheme, calibration, widths, overrides)
    name, results, next_command = outcome
    cells = [(str(bits), *_describe(result)) for bits, result in results.items()]
    print_table(("bits", "rounding", "norms and biases", "loss of tuning"), cells, name)
    print_outcome(options.out, *next_command)


Outcome = tuple[str, "Mapping[Bits, RepairResult | None]", tuple[object, ...]]
"""A name, what was made of each bit-width, and the next command."""


def _quantize_detector(
    options: argparse.Namespace,
    scheme: Scheme,
    is_auto: bool,
    calibration: Calibration,
    widths: list[Bits],
    overrides: Mapping[str, Bits],
) -> Outcome:
    from dataclasses import replace

    from ssql_det.core.files import check_not_an_input
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.evaluation_data import select_role_images
    from ssql_det.detect.quantize import quantize_detector
    from ssql_det.detect.quantized_evaluation import QuantizationSettings

    _refuse(options, _OF_BACKBONES, "--checkpoint, of a backbone")
    settings = QuantizationSettings(check_scope(options), calibration, scheme, overrides)
    cfg = read_detector_config(options, options.overrides)
    check_not_an_input(options.out, [options.config_file, cfg.MODEL.WEIGHTS])
    model, checkpoint = load_trained_detector(cfg)
    images = select_role_images(cfg, calibration)
    if is_auto:
        settings = replace(settings, scheme=_select_scheme(model, images, widths, settings))
    _, results = quantize_detector(cfg, model, widths, settings, Path(options.out), images)
    bits_file = ("--bits-file", options.bits_file) if overrides else ()
    words = ("--bits", ",".join(("FP", *map(str, widths))), *bits_file, "--quantization", options.out)
    next_command = ("sweep", "--config-file", options.config_file, *words, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    return f"{checkpoint.display_name}, {settings.scheme}", results, next_command


def _select_scheme(model: nn.Module, images: RoleImages, widths: list[Bits], settings: QuantizationSettings) -> Scheme:
    """Choose a scheme, and print how far each one is from the float detector."""
    from ssql_det.core.console import print_table
    from ssql_det.detect.selection import select_scheme

    scheme, trials = select_scheme(model, images, widths, settings)
    cells = [(str(trial.scheme), *(f"{loss:.4f}" for loss in trial.losses), f"{trial.score:.4f}") for trial in trials]
    headings = ("scheme", *map(str, widths), "mean")
    print_table(
        headings, cells, f"distillation loss on {settings.calibration.selection_images} images; taken: {scheme}"
    )
    return scheme


def _quantize_backbone(
    options: argparse.Namespace,
    scheme: Scheme,
    calibration: Calibration,
    widths: list[Bits],
    overrides: Mapping[str, Bits],
) -> Outcome:
    from ssql_det.core.console import set_up_logging
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import check_not_an_input
    from ssql_det.pretrain.quantize_backbone import quantize_backbone

    set_up_logging()
    _refuse(options, _OF_DETECTORS, "--config-file, of a detector")
    if options.overrides:
        raise UserError(f"a backbone has no config, but {options.overrides[0]} is given; leave it out")
    if options.data is None:
        raise UserError("--checkpoint needs --data: a folder with train of class folders, or cifar10:FOLDER")
    check_not_an_input(options.out, [options.checkpoint])
    results = quantize_backbone(
        options.checkpoint,
        options.data,
        widths,
        scheme,
        calibration,
        Path(options.out),
        augmentation_name=options.recipe,
        image_size=options.size,
        device_name=options.device,
        overrides=overrides,
    )
    words = ["--checkpoint", options.checkpoint, "--data", options.data, "--quantization", options.out]
    for option, value in (("--recipe", options.recipe), ("--size", options.size)):
        words += [option, value] if value else []
    bits = ",".join(("FP", *map(str, widths)))
    return f"{Path(options.checkpoint).name}, {scheme}", results, ("probe", "knn", "linear", *words, "--bits", bits)


def _make_calibration(options: argparse.Namespace, scheme: Scheme, is_auto: bool) -> Calibration:
    from ssql_det.core.rows import Calibration

    count = options.reconstruction_images
    if count is None:
        count = _RECONSTRUCTION_IMAGES if scheme.learned_repairs else 0
    selection = options.selection_images
    if selection is None:
        selection = _SELECTION_IMAGES if is_auto else 0
    return Calibration(options.calib_images, options.calib_seed, "", count, selection)


def _refuse(options: argparse.Namespace, names: tuple[str, ...], owner: str) -> None:
    """Options of the other kind of network."""
    from ssql_det.core.errors import UserError

    for name in names:
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} needs {owner}; leave it out")


def _describe(result: RepairResult | None) -> tuple[str, str, str]:
    """The cells of a bit-width: what this run made."""
    if result is None:
        return ("nothing to do", "-", "-")
    kept = sum(block.is_kept for block in result.blocks)
    rounding = f"{kept} of {len(result.blocks)} blocks learned" if result.blocks else "-"
    losses = result.tuning_losses
    quarter = max(len(losses) // 4, 1)
    before, after = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
    tuning = f"{before:.4f} -> {after:.4f}" if losses else "-"
    return rounding, str(result.num_corrected or "-"), tuning
