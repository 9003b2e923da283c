"""Check a dataset, VOC, COCO or any COCO-format file: folders, lists, images, boxes, masks, ids, counts.

Exit code 2 if training on it would fail. Every finding names its file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import positive_int, worker_int
from ssql_det.core.errors import UserError, printable

if TYPE_CHECKING:
    from ssql_det.checkdata.findings import SplitReport

HELP = "check a VOC, COCO or COCO-format dataset before training on it"
EXAMPLES = (
    "ssql-det check-data datasets --dataset voc --draw 9 sheet.png",
    "ssql-det check-data photos --dataset train.json",
)
HEADER = ("split", "images", "objects", "classes", "errors", "warnings")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root", metavar="ROOT", help="the folder with VOC2007, VOC2012, coco; or with a JSON file's images"
    )
    parser.add_argument("--dataset", metavar="voc|coco|FILE.json", help="which dataset to check (default: all in ROOT)")
    parser.add_argument(
        "--draw", nargs=2, metavar=("N", "OUT.png"), help="draw a contact sheet of N images with their boxes"
    )
    parser.add_argument(
        "--quick", action="store_true", help="read only the headers of images: does not find truncated files"
    )
    parser.add_argument(
        "--most", type=positive_int, default=20, help="print at most this many findings (default: %(default)s)"
    )
    parser.add_argument("--workers", type=worker_int, default=None, help="threads (default: one per core)")


def run(options: argparse.Namespace) -> None:
    from ssql_det.checkdata.draw import draw_contact_sheet, parse_draw_option
    from ssql_det.checkdata.findings import check_images
    from ssql_det.core.console import print_next, print_table

    num_to_draw = parse_draw_option(*options.draw) if options.draw else 0
    root = Path(options.root)
    splits = _check_splits(root, options.dataset)
    for split in splits:
        check_images(split, options.quick, options.workers)
    print_table(HEADER, [_summarize(split) for split in splits])
    findings = sorted(
        (finding for split in splits for finding in split.findings), key=lambda finding: not finding.is_error
    )
    for finding in findings[: options.most]:
        print(finding)
    if len(findings) > options.most:
        print(f"... and {len(findings) - options.most} more; --most {len(findings)} prints all")
    errors = sum(finding.is_error for finding in findings)
    if errors:
        raise UserError(f"{root} has {errors} error(s) that would stop a training; fix the files named above")
    if options.draw:
        draw_contact_sheet([image for split in splits for image in split.images], num_to_draw, options.draw[1])
    if options.dataset in (None, "voc", "coco"):
        print(f"no errors; to train on it: export DETECTRON2_DATASETS={root.resolve()}")
        print_next("train-det", "--config-file", "voc_r18_c4", "MODEL.WEIGHTS", "BACKBONE")


def _check_splits(root: Path, dataset: str | None) -> Sequence[SplitReport]:
    from ssql_det.checkdata import coco, voc

    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give the folder of the datasets, as for DETECTRON2_DATASETS")
    if dataset is not None and dataset.endswith(".json"):
        return [coco.check_coco_file(Path(dataset), root, Path(dataset).stem)]
    if dataset not in (None, "voc", "coco"):
        raise UserError(f"--dataset must be voc, coco or the path of a COCO-format .json file, got {dataset!r}")
    splits: list[SplitReport] = []
    for year in voc.SPLITS:
        if dataset in (None, "voc") and (root / year).is_dir():
            splits += voc.check_voc(root / year)
    if dataset in (None, "coco") and (root / "coco").is_dir():
        splits += coco.check_coco(root / "coco")
    if not splits:
        folders = {"voc": "VOC2007", "coco": "coco", None: "VOC2007, VOC2012 or coco"}[dataset]
        raise UserError(f"{root} has no folder {folders} in it; give their parent, as for DETECTRON2_DATASETS")
    return splits


def _summarize(split: SplitReport) -> tuple[str, ...]:
    counts = split.object_counts
    errors = sum(finding.is_error for finding in split.findings)
    numbers = (len(split.images), sum(counts.values()), len(counts), errors, len(split.findings) - errors)
    return (printable(split.name), *map(str, numbers))
