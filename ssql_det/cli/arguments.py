"""Options that several commands have: a scheme, a calibration, a detector's config, custom data, KEY VALUE pairs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssql_det.core.rows import Calibration

if TYPE_CHECKING:
    from ssql_det.d2 import CfgNode
    from ssql_det.quant import Scheme

_DEFAULT = Calibration()
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")
SCOPES = "backbone|backbone+neck|all"  # as the help shows them


def positive_int(text: str) -> int:
    """A whole number of 1 or more."""
    return _parse_int(text, least=1, kind="1 or more")


def seed_int(text: str) -> int:
    """A whole number that every random generator accepts as its seed."""
    return _parse_int(text, least=0, kind="0 or more")


def _parse_int(text: str, least: int, kind: str) -> int:
    if not (text.isdecimal() and len(text) <= 18 and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {kind}")
    return int(text)


def add_scheme(parser: argparse.ArgumentParser, default: str | None = "minmax", shown: str = "%(default)s") -> None:
    """``shown`` is the default as the help prints it."""
    parser.add_argument(
        "--scheme",
        default=default,
        help=f"quantizers and norms, such as 'weight=centred, act=mse, norms=re-estimated' (default: {shown})",
    )


def add_calibration_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calib-images",
        type=positive_int,
        default=_DEFAULT.images,
        help="training images to calibrate with (default: %(default)s)",
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """How many images, and the seed that selects them."""
    add_calibration_images(parser)
    parser.add_argument(
        "--calib-seed",
        type=seed_int,
        default=_DEFAULT.seed,
        help="seed that selects these images (default: %(default)s)",
    )


def add_bits(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--bits", default=default, help="bit-widths, such as FP,8,2w4a (default: %(default)s)")


def add_scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scope", metavar=SCOPES, default="all", help="modules to quantize (default: %(default)s)")


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """How a command preprocesses the images that it gives to a backbone."""
    parser.add_argument(
        "--recipe",
        metavar="imagenet|cifar|digits",
        default="",
        help="how to preprocess images (default: by the network)",
    )
    parser.add_argument("--size", type=positive_int, help="image size in pixels (default: the recipe's)")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="the CPU is used where there is no GPU (default: %(default)s)")


def add_memory_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory-format",
        choices=MEMORY_FORMATS,
        default=MEMORY_FORMATS[0],
        help="of the network (default: %(default)s, channels_last on CPUs and GPUs)",
    )


def make_calibration(options: argparse.Namespace) -> Calibration:
    return Calibration(options.calib_images, options.calib_seed)


def make_scheme(options: argparse.Namespace) -> Scheme:
    """A scheme that does not support all of ``--bits`` is a mistake."""
    from ssql_det.quant import Scheme, parse_bit_widths

    scheme = Scheme() if options.scheme is None else Scheme.parse(options.scheme)
    scheme.check_bits(parse_bit_widths(options.bits))
    return scheme


def add_config_file(parser: argparse.ArgumentParser) -> None:
    names = "a config: a file, or a name that `ssql-det configs` lists"
    parser.add_argument("--config-file", metavar="FILE", required=True, help=names)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser)
    for split, use in (("train", "training and calibration"), ("val", "evaluation")):
        parser.add_argument(
            f"--coco-{split}", metavar="IMAGES:FILE.json", help=f"your own data for {use}, in COCO's format"
        )


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Add these last: they take the rest of the line."""
    parser.add_argument(
        "overrides", metavar="KEY VALUE", nargs=argparse.REMAINDER, help=f"change keys of the config, such as {example}"
    )


def add_num_gpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-gpus", type=positive_int, default=1, help="GPUs to use, or processes on a CPU (default: %(default)s)"
    )


def read_detector_config(options: argparse.Namespace, overrides: Sequence[str]) -> CfgNode:
    """Set up logging; read the config with ``--coco-train`` and ``--coco-val``, then with KEY VALUE pairs."""
    from ssql_det.d2 import read_config, set_up_logging
    from ssql_det.detect import SSQL_DET_DEFAULTS

    set_up_logging()
    return read_config(options.config_file, [*_make_data_overrides(options), *overrides], SSQL_DET_DEFAULTS)


def check_config_is_kept(config_file: str, output_dir: str, resume: bool, checkpoint_name: str) -> None:
    """Refuse a user's own config file where the run would save its config. A resumed run has saved that file itself."""
    from ssql_det.core.config import SAVED_CONFIG_NAME, check_output_dir
    from ssql_det.core.config_files import find_config
    from ssql_det.core.files import check_not_an_input

    folder = check_output_dir(output_dir)
    if not resume or not (folder / checkpoint_name).exists():
        check_not_an_input(folder / SAVED_CONFIG_NAME, [find_config(config_file)])


def set_up_process() -> None:
    """Set up logging and the group of ranks on this machine, at the start of each process of a job."""
    from ssql_det import d2

    d2.set_up_logging()
    d2.create_local_group()


def _make_data_overrides(options: argparse.Namespace) -> list[str]:
    """The KEY VALUE pairs that ``--coco-train`` and ``--coco-val`` stand for."""
    from ssql_det.detect.datasets import load_class_names, make_custom_name

    datasets = {"DATASETS.TRAIN": options.coco_train, "DATASETS.TEST": options.coco_val}
    names = {key: make_custom_name(data) for key, data in datasets.items() if data is not None}
    if not names:
        return []
    count = len(load_class_names(next(iter(names.values()))))
    pairs = {key: repr((name,)) for key, name in names.items()} | {"MODEL.ROI_HEADS.NUM_CLASSES": str(count)}
    return [text for pair in pairs.items() for text in pair]
