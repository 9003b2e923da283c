"""What every command that quantizes is told: a scheme, and how many images to calibrate with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ssql_det.cli.numbers import positive, seed
from ssql_det.core.calibration import Calibration

if TYPE_CHECKING:
    from ssql_det.quant import Scheme

_DEFAULT = Calibration()


def add_scheme(parser: argparse.ArgumentParser, default: str | None = "minmax", shown: str = "%(default)s") -> None:
    parser.add_argument(
        "--scheme",
        default=default,
        help=f"quantizers and norms, as 'weight=centred, act=mse, norms=re-estimated' (default: {shown})",
    )


def add_calibration_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calib-images",
        type=positive,
        default=_DEFAULT.images,
        help="training images to calibrate with (default: %(default)s)",
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """The images are chosen by a seed of their own."""
    add_calibration_images(parser)
    parser.add_argument(
        "--calib-seed", type=seed, default=_DEFAULT.seed, help="another seed, other images (default: %(default)s)"
    )


def calibration_of(options: argparse.Namespace) -> Calibration:
    return Calibration(options.calib_images, options.calib_seed)


def scheme_of(options: argparse.Namespace) -> Scheme:
    """Refused where it cannot give ``--bits``."""
    from ssql_det.quant import Scheme, parse_widths

    scheme = Scheme() if options.scheme is None else Scheme.parse(options.scheme)
    scheme.require_widths(parse_widths(options.bits))
    return scheme
