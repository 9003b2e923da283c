"""What frozen features know of the classes of labelled images, at full precision and at few bits: a row each.

The backbone may be any that `ssql-det convert` reads. One calibration serves all bit-widths. The linear layer is
trained fast, on the features of one view of each image, or as published, of one that is new in each epoch, through the
quantized network; --cached-views N is between the two: N views of each image, which come round again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ssql_det.cli.arguments import (
    add_bits,
    add_calibration_images,
    add_device,
    add_image_options,
    add_scheme,
    make_scheme,
    positive_int,
    seed_int,
)

HELP = "kNN and linear accuracy of a frozen backbone, at several bit-widths"
EXAMPLES = (
    "ssql-det probe knn linear --checkpoint runs/ssql/checkpoint.pth --data toy/crops",
    "ssql-det probe linear --protocol published --checkpoint ssql_r18.pth --data cifar10:datasets --bits FP,8,4",
)
BITS = "FP,8,6,5,4,2w4a"
KINDS = ("knn", "linear")
PROTOCOLS = ("fast", "published")
_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, nargs="+", help="what is asked, one or both")
    parser.add_argument("--checkpoint", metavar="FILE", required=True, help="a backbone, in any format")
    parser.add_argument("--data", required=True, help="a folder with train and val of classes, or cifar10:FOLDER")
    add_bits(parser, BITS)
    add_scheme(parser)
    add_calibration_images(parser)
    parser.add_argument("--images", type=positive_int, help="of each split at most (default: all)")
    add_image_options(parser)
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="fast", help="of the linear probe (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive_int, help="of the linear probe (default: the protocol's, 100 or 60)")
    parser.add_argument(
        "--batch", type=positive_int, help="of the linear probe, the rate in proportion (default: 512 or 2048)"
    )
    parser.add_argument(
        "--cached-views", metavar="N", type=positive_int, help="of each image come round again, as published"
    )
    parser.add_argument(
        "--workers", type=positive_int, default=4, help="processes that make views (default: %(default)s)"
    )
    add_device(parser)
    parser.add_argument("--method", default="", help="how rows call it (default: as the checkpoint says)")
    parser.add_argument("--seed", type=seed_int, default=0, help="of the choice of images, and of views (default: 0)")
    parser.add_argument("--resume", action="store_true", help="what --out has of these rows is not measured again")
    parser.add_argument("--out", default="probes/results.jsonl", help="where rows go (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core import rows
    from ssql_det.core.console import print_outcome, print_table, set_up_logging
    from ssql_det.pretrain.classifiers import Protocol
    from ssql_det.pretrain.probe_checkpoint import ProbeSettings, probe_checkpoint

    set_up_logging()
    rows.check_results_file(options.out)
    plan = ProbeSettings(
        kinds=tuple(options.kind),
        seed=options.seed,
        device=options.device,
        workers=options.workers,
        calibration=options.calib_images,
        scheme=make_scheme(options),
        most=options.images,
        size=options.size,
        protocol=Protocol(options.protocol, options.epochs, options.batch, options.cached_views),
        method=options.method,
    )
    found, out = [], Path(options.out)
    there = rows.read_rows(out) if options.resume and out.exists() else []
    for row in probe_checkpoint(options.checkpoint, options.data, options.bits, options.recipe, plan, there):
        if row not in there:
            rows.append_row(out, row)
        found.append(row)
        _logger.info("%s: %s", row.bits, ", ".join(f"{name} {value:.2f}" for name, value in row.metrics.items()))
    cells = [(row.bits, *(f"{value:.2f}" for value in row.metrics.values())) for row in found]
    print_table(("bits", *found[0].metrics), cells, f"{Path(options.checkpoint).name} on {found[0].dataset}")
    print_outcome(out, "tables", "--table", "1", "--rows", out, "--dataset", found[0].dataset)
