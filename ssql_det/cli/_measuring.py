"""What `sensitivity` and `search` have in common: both measure groups of a detector's modules on selection images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql_det.cli.arguments import (
    add_calibration,
    add_config_arguments,
    add_num_gpus,
    add_quantization,
    add_scope,
    check_scope,
    make_calibration,
    parse_scheme,
    positive_int,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.quant import Bits

SELECTION_IMAGES = 128
QuantizationFile = tuple[Path, dict[str, Any]]
"""A quantization file, and the settings that are given beside it."""


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_num_gpus(parser)
    parser.add_argument(
        "--fast", action="store_true", help="measure parts by the change of the detector's outputs instead of AP"
    )
    parser.add_argument(
        "--groups",
        metavar="PATTERN,...",
        help="parts of your own, as patterns of module paths (default: stem, stages, neck, heads)",
    )
    add_scope(parser, has_file=True)
    add_quantization(parser, "; its scheme must learn nothing, as it would learn for all parts together")
    add_calibration(parser, has_file=True)
    parser.add_argument(
        "--selection-images",
        type=positive_int,
        default=SELECTION_IMAGES,
        help="more training images, on which parts are measured (default: %(default)s)",
    )


def read_groups(options: argparse.Namespace) -> tuple[str, ...]:
    """The patterns of ``--groups``; none stand for the parts of a detector."""
    return tuple(part.strip() for part in options.groups.split(",")) if options.groups is not None else ()


def make_settings(
    options: argparse.Namespace, bit_widths: Sequence[Bits]
) -> tuple[QuantizationSettings, QuantizationFile | None]:
    """The settings, if no quantization file replaces them."""
    from dataclasses import replace

    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.quant import Scheme

    scope, scheme = check_scope(options), parse_scheme(options) or Scheme()
    scheme.check_bits(bit_widths)
    calibration = replace(make_calibration(options), selection_images=options.selection_images)
    settings = QuantizationSettings(scope, calibration, scheme)
    if options.quantization is None:
        scheme.check_learns_nothing(bit_widths)
        return settings, None
    given = {"scope": options.scope, "scheme": parse_scheme(options)}
    return settings, (Path(options.quantization), given | {"images": options.calib_images, "seed": options.calib_seed})


def complete_settings(
    model: nn.Module, settings: QuantizationSettings, file: QuantizationFile | None
) -> tuple[QuantizationSettings, Path | None]:
    """The settings of the quantization file, if there is one, with the selection images; and its path."""
    from dataclasses import replace

    from ssql_det.core.errors import UserError
    from ssql_det.detect.saved_quantization import load_with_settings

    if file is None:
        return settings, None
    path, given = file
    _, of_file = load_with_settings(path, model, **given)
    if of_file.scheme.learned_repairs:
        raise UserError(
            f"{path} has the scheme {of_file.scheme}, which learned for all parts together, not for each alone; "
            "use --scheme without what is learned, such as act=mse, norms=matched"
        )
    selection_images = settings.calibration.selection_images
    return replace(of_file, calibration=replace(of_file.calibration, selection_images=selection_images)), path
