"""What several commands are told: whole numbers, a scheme and a calibration, a detector's config and own data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssql_det.core.rows import Calibration

if TYPE_CHECKING:
    from ssql_det.d2 import CfgNode
    from ssql_det.quant import Scheme

_DEFAULT = Calibration()


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    return _whole(text, least=1, kind="1 or more")


def seed(text: str) -> int:
    """A whole number that every generator takes as a seed."""
    return _whole(text, least=0, kind="0 or more")


def _whole(text: str, least: int, kind: str) -> int:
    if not (text.isdecimal() and len(text) <= 18 and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {kind}")
    return int(text)


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
    scheme.check_bits(parse_widths(options.bits))
    return scheme


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", metavar="FILE", required=True, help="the detector's config")
    for split, use in (("train", "train and calibrate on"), ("val", "evaluate on")):
        parser.add_argument(
            f"--coco-{split}", metavar="IMAGES:FILE.json", help=f"own data in COCO's format to {use}; classes from it"
        )


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Last of all: they take what is left of the line."""
    parser.add_argument("overrides", metavar="KEY VALUE", nargs=argparse.REMAINDER, help=f"as {example}")


def add_num_gpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-gpus", type=positive, default=1, help="or processes, without one (default: %(default)s)")


def read_detector_config(options: argparse.Namespace, overrides: Sequence[str]) -> CfgNode:
    """The config with own data in it; what the line itself changes goes before that. Log lines come from here on."""
    from ssql_det.d2 import read_config, set_up_logging
    from ssql_det.detect import SSQL_DET_DEFAULTS

    set_up_logging()
    return read_config(options.config_file, [*_own_data(options), *overrides], SSQL_DET_DEFAULTS)


def set_up_process() -> None:
    """What each process of a job begins with: log lines, and who shares its machine."""
    from ssql_det import d2

    d2.set_up_logging()
    d2.create_local_group()


def _own_data(options: argparse.Namespace) -> list[str]:
    from ssql_det.detect.datasets import load_class_names, make_custom_name

    given = {"DATASETS.TRAIN": options.coco_train, "DATASETS.TEST": options.coco_val}
    names = {key: make_custom_name(data) for key, data in given.items() if data is not None}
    if not names:
        return []
    count = len(load_class_names(next(iter(names.values()))))
    pairs = {key: repr((name,)) for key, name in names.items()} | {"MODEL.ROI_HEADS.NUM_CLASSES": str(count)}
    return [text for pair in pairs.items() for text in pair]
