"""Make toy data in the layouts of VOC and COCO, and digit crops: real handwritten digits before photographs.

Same settings, same bytes. A folder that is already made is left as it is.
"""

from __future__ import annotations

import argparse

from ssql_det.cli.arguments import positive_int, seed_int

HELP = "toy scenes in VOC and COCO layout and digit crops, made offline"
EXAMPLES = (
    "ssql-det make-toy-data toy",
    "ssql-det make-toy-data toy --scenes 4000 --size 128 256 --difficulty 0.25",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="folder to make; point DETECTRON2_DATASETS at it")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes in all (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=10000, help="digit crops in all (default: %(default)s)")
    parser.add_argument("--crop-size", type=int, default=32, help="side of a crop, 32 or 64 (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(128, 320),
        metavar=("LEAST", "MOST"),
        help="sides of a scene in pixels (default: 128 320)",
    )
    parser.add_argument(
        "--difficulty", type=float, default=0.5, help="0 to 1: of flat colours to photographs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed_int, default=0, help="another seed, other data (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=None, help="threads (default: one a core)")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import print_outcome
    from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

    settings = ToyDataSettings(
        scenes=options.scenes,
        crops=options.crops,
        crop_size=options.crop_size,
        least_side=options.size[0],
        most_side=options.size[1],
        difficulty=options.difficulty,
        seed=options.seed,
    )
    place = make_toy_data(options.out, settings, options.workers)
    print(f"to read the scenes as VOC and COCO: export DETECTRON2_DATASETS={place}")
    print_outcome(place, "pretrain", "--config-file", "mini", "DATA.TRAIN", place / "crops", "OUTPUT_DIR", "runs/ssql")
