"""Options that several commands have: a scheme, a calibration, a detector's config, custom data, KEY VALUE pairs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ssql_det.core.config_files import prefer_folder
from ssql_det.core.errors import printable
from ssql_det.core.rows import Calibration

if TYPE_CHECKING:
    from ssql_det.d2 import CfgNode
    from ssql_det.quant import Bits, Scheme

_DEFAULT = Calibration()
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")
SCOPES = "backbone|backbone+neck|all"  # as the help shows them
_DEFAULT_SCOPE = "all"
_OF_THE_FILE = "the file's, else "


def positive_int(text: str) -> int:
    """A count of 1 or more."""
    return _parse_int(text, least=1)


def seed_int(text: str) -> int:
    """A whole number that every random generator accepts as its seed."""
    return _parse_int(text, least=0)


def worker_int(text: str) -> int:
    """A number of processes or threads."""
    return _parse_int(text, least=1, most=1 << 10)


def pixel_int(text: str) -> int:
    """The side of a square image."""
    return _parse_int(text, least=1, most=1 << 16)


def _parse_int(text: str, least: int, most: int = (1 << 32) - 1) -> int:
    """The default of ``most`` is the largest seed of NumPy's generators."""
    is_long = len(text) > len(str(most))
    if not text.isdecimal() or not (is_long or int(text) >= least):
        raise argparse.ArgumentTypeError(f"{printable(text, 40)!r} is not a whole number, {least} or more")
    if is_long or int(text) > most:
        raise argparse.ArgumentTypeError(f"{printable(text, 40)!r} is too large; the most is {most}")
    return int(text)


def add_scheme(parser: argparse.ArgumentParser, default: str | None = "minmax", shown: str = "%(default)s") -> None:
    """``shown`` is the default as the help prints it."""
    parser.add_argument(
        "--scheme",
        default=default,
        help=f"quantizers and norms, such as 'weight=centred, act=mse, norms=matched' (default: {shown})",
    )


def add_calibration_images(parser: argparse.ArgumentParser, has_file: bool = False) -> None:
    """``has_file``: the default is that of a quantization file, if the user names one."""
    parser.add_argument(
        "--calib-images",
        type=positive_int,
        default=None if has_file else _DEFAULT.images,
        help=f"training images to calibrate with (default: {_OF_THE_FILE if has_file else ''}{_DEFAULT.images})",
    )


def add_calibration(parser: argparse.ArgumentParser, has_file: bool = False) -> None:
    """How many images, and the seed that selects them."""
    add_calibration_images(parser, has_file)
    parser.add_argument(
        "--calib-seed",
        type=seed_int,
        default=None if has_file else _DEFAULT.seed,
        help=f"seed that selects these images (default: {_OF_THE_FILE if has_file else ''}{_DEFAULT.seed})",
    )


def add_quantization(parser: argparse.ArgumentParser, more: str = "", default: str = "minmax") -> None:
    """A file that holds scheme, calibration and repairs, and options that replace or must agree with it.

    ``default``: the scheme without a file, for the help.
    """
    add_scheme(parser, None, f"{_OF_THE_FILE}{default}")
    parser.add_argument(
        "--quantization", metavar="FILE", help=f"of these weights, by `ssql-det quantize` or a sweep{more}"
    )


def add_bits(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--bits", default=default, help="bit-widths, such as FP,8,2w4a (default: %(default)s)")


def add_bits_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bits-file", metavar="FILE.json", help="bits of single modules, as JSON: {pattern: bits}")


def add_scope(parser: argparse.ArgumentParser, has_file: bool = False) -> None:
    parser.add_argument(
        "--scope",
        metavar=SCOPES,
        help=f"modules to quantize (default: {_OF_THE_FILE if has_file else ''}{_DEFAULT_SCOPE})",
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """How a command preprocesses the images that it gives to a backbone."""
    parser.add_argument(
        "--recipe",
        metavar="imagenet|cifar|digits",
        default="",
        help="how to preprocess images (default: by the network)",
    )
    parser.add_argument("--size", type=pixel_int, help="image size in pixels (default: the recipe's)")


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
    given = {"images": options.calib_images, "seed": getattr(options, "calib_seed", None)}
    return Calibration(**{name: value for name, value in given.items() if value is not None})


def make_scheme(options: argparse.Namespace) -> Scheme:
    """The scheme of an evaluation. One that does not support all of ``--bits`` is a mistake, and so is one with learned
    repairs, unless they are in a file."""
    from ssql_det.quant import Scheme, parse_bit_widths

    scheme, bit_widths = parse_scheme(options) or Scheme(), parse_bit_widths(options.bits)
    scheme.check_bits(bit_widths)
    if getattr(options, "quantization", None) is None:
        scheme.check_learns_nothing(bit_widths)
    return scheme


def parse_scheme(options: argparse.Namespace) -> Scheme | None:
    """``--scheme``, or ``None`` if it is not given."""
    from ssql_det.quant import Scheme

    return None if options.scheme is None else Scheme.parse(options.scheme)


def check_scope(options: argparse.Namespace) -> str:
    """``--scope``; an unknown one is a mistake, which needs no network to be found."""
    from ssql_det.core.errors import UserError
    from ssql_det.detect import SCOPES

    scope: str = options.scope or _DEFAULT_SCOPE
    if scope not in SCOPES:
        raise UserError(f"--scope must be {' or '.join(SCOPES)}, got {scope!r}")
    return scope


def read_bits_file(path: str | None) -> Mapping[str, Bits]:
    """The bit-widths by pattern of module paths in ``--bits-file``, if it is given."""
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import read_text
    from ssql_det.core.json_files import parse_json
    from ssql_det.quant import Bits

    if path is None:
        return {}
    try:
        content = parse_json(read_text(path))
    except ValueError as failure:
        raise UserError(f"{path} is not JSON: {failure}") from failure
    if not isinstance(content, dict) or not all(isinstance(bits, str) for bits in content.values()):
        raise UserError(f'{path} must hold bits by pattern, as {{"backbone.bottom_up.res5.*": "8w8a"}}')
    return {pattern: Bits.parse(bits) for pattern, bits in content.items()}


def add_config_file(parser: argparse.ArgumentParser, folder: str, required: bool = True) -> None:
    """``folder``: of the package's configs that the command takes."""
    names, read_name = (
        "a config: a file, or a name that `ssql-det configs` lists",
        partial(prefer_folder, folder=folder),
    )
    parser.add_argument("--config-file", metavar="FILE", type=read_name, required=required, help=names)


def add_config_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    add_config_file(parser, "detection", required)
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
        "--num-gpus", type=worker_int, default=1, help="GPUs to use, or processes on a CPU (default: %(default)s)"
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
