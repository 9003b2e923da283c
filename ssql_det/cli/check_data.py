"""Check a data set in place, VOC, COCO or any COCO-format file: folders, lists, images, boxes, masks, ids, counts.

Exit code 2 when training on it would fail. Every finding names its file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import positive_int
from ssql_det.core.errors import UserError, printable

if TYPE_CHECKING:
    from ssql_det.checkdata.findings import SplitReport

HELP = "is a VOC, COCO or COCO-format data set fit to train on?"
EXAMPLES = (
    "ssql-det check-data datasets --dataset voc --draw 9 sheet.png",
    "ssql-det check-data photos --dataset train.json",
)
HEADER = ("split", "images", "objects", "classes", "errors", "warnings")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="the folder that holds VOC2007, VOC2012, coco; or a JSON's images")
    parser.add_argument("--dataset", metavar="voc|coco|FILE.json", help="which to check (default: all that are there)")
    parser.add_argument("--draw", nargs=2, metavar=("N", "OUT.png"), help="a contact sheet of N images")
    parser.add_argument("--quick", action="store_true", help="read image headers only: misses files cut short")
    parser.add_argument("--most", type=positive_int, default=20, help="findings to print (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=None, help="threads (default: one a core)")


def run(options: argparse.Namespace) -> None:
    from ssql_det.checkdata.draw import draw_contact_sheet, parse_draw_option
    from ssql_det.checkdata.findings import check_images
    from ssql_det.core.console import print_next, print_table

    wanted = parse_draw_option(*options.draw) if options.draw else 0
    root = Path(options.root)
    splits = _find(root, options.dataset)
    for split in splits:
        check_images(split, options.quick, options.workers)
    print_table(HEADER, [_summary(split) for split in splits])
    findings = sorted((finding for split in splits for finding in split.findings), key=lambda each: not each.is_error)
    for finding in findings[: options.most]:
        print(finding)
    if len(findings) > options.most:
        print(f"... and {len(findings) - options.most} more; --most {len(findings)} prints all")
    faults = sum(finding.is_error for finding in findings)
    if faults:
        raise UserError(f"{root} has {faults} fault(s) that would end a training; mend the files named above")
    if options.draw:
        draw_contact_sheet([image for split in splits for image in split.images], wanted, options.draw[1])
    if options.dataset in (None, "voc", "coco"):
        print(f"fit to train on: export DETECTRON2_DATASETS={root.resolve()}")
        print_next("train-det", "--config-file", "voc_r18_c4", "MODEL.WEIGHTS", "BACKBONE")


def _find(root: Path, dataset: str | None) -> Sequence[SplitReport]:
    from ssql_det.checkdata import coco, voc

    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give the one that DETECTRON2_DATASETS names, or should name")
    if dataset is not None and dataset.endswith(".json"):
        return [coco.check_coco_file(Path(dataset), root, Path(dataset).stem)]
    if dataset not in (None, "voc", "coco"):
        raise UserError(f"--dataset is voc, coco or the path of a COCO-format .json file, got {dataset!r}")
    splits: list[SplitReport] = []
    for year in voc.SPLITS:
        if dataset in (None, "voc") and (root / year).is_dir():
            splits += voc.check_voc(root / year)
    if dataset in (None, "coco") and (root / "coco").is_dir():
        splits += coco.check_coco(root / "coco")
    if not splits:
        wanted = {"voc": "VOC2007", "coco": "coco", None: "VOC2007, VOC2012 or coco"}[dataset]
        raise UserError(f"{root} has no folder {wanted} in it; give its parent folder, the one for DETECTRON2_DATASETS")
    return splits


def _summary(split: SplitReport) -> tuple[str, ...]:
    counts = split.object_counts
    errors = sum(finding.is_error for finding in split.findings)
    numbers = (len(split.images), sum(counts.values()), len(counts), errors, len(split.findings) - errors)
    return (printable(split.name), *map(str, numbers))
