"""What every command about a detector is told: a config, its changes, and a user's own data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssql_det.cli.numbers import positive

if TYPE_CHECKING:
    from ssql_det.d2 import CfgNode


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
    """The config with own data in it; what the line itself changes goes before that."""
    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS

    return read_config(options.config_file, [*_own_data(options), *overrides], SSQL_DET_DEFAULTS)


def set_up_process() -> None:
    """What each process of a job begins with: log lines, and who shares its machine."""
    from ssql_det import d2

    d2.set_up_logging()
    d2.join_local_group()


def _own_data(options: argparse.Namespace) -> list[str]:
    from ssql_det.detect.data import classes_of, own_name

    given = {"DATASETS.TRAIN": options.coco_train, "DATASETS.TEST": options.coco_val}
    names = {key: own_name(data) for key, data in given.items() if data is not None}
    if not names:
        return []
    count = len(classes_of(next(iter(names.values()))))
    pairs = {key: repr((name,)) for key, name in names.items()} | {"MODEL.ROI_HEADS.NUM_CLASSES": str(count)}
    return [text for pair in pairs.items() for text in pair]
