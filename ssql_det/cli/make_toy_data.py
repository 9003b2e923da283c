"""Make toy data offline: scenes of handwritten digits in VOC and COCO layout, and crops of single digits.

The same settings give the same bytes. An existing folder with the same settings is left as it is.
"""

from __future__ import annotations

import argparse

from ssql_det.cli.arguments import positive_int, seed_int, worker_int

HELP = "make toy scenes in VOC and COCO layout, and digit crops, offline"
EXAMPLES = (
    "ssql-det make-toy-data toy",
    "ssql-det make-toy-data toy --scenes 4000 --size 128 256 --difficulty 0.25",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="folder to make; set DETECTRON2_DATASETS to it")
    parser.add_argument("--scenes", type=positive_int, default=1000, help="number of scenes (default: %(default)s)")
    parser.add_argument(
        "--crops", type=positive_int, default=10000, help="number of digit crops (default: %(default)s)"
    )
    parser.add_argument("--crop-size", type=int, default=32, help="side of a crop, 32 or 64 (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(128, 320),
        metavar=("MIN", "MAX"),
        help="range of a scene's sides in pixels (default: 128 320)",
    )
    parser.add_argument(
        "--difficulty",
        type=float,
        default=0.5,
        help="of the background: 0, flat colours, to 1, photographs (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed_int, default=0, help="seed of the data (default: %(default)s)")
    parser.add_argument("--workers", type=worker_int, default=None, help="threads (default: one per core)")


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
    folder = make_toy_data(options.out, settings, options.workers)
    print(f"to read the scenes as VOC and COCO: export DETECTRON2_DATASETS={folder}")
    print_outcome(
        folder, "pretrain", "--config-file", "mini", "DATA.TRAIN", folder / "crops", "OUTPUT_DIR", "runs/ssql"
    )
