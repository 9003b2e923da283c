"""kNN and linear accuracy of a frozen backbone on labelled images: one row of results for each bit-width.

The backbone may be in any format that `ssql-det convert` reads. One calibration serves all bit-widths, or a file that
`ssql-det quantize` made, with its repairs (--quantization). With --protocol fast the linear layer is trained on the
features of each image without augmentation; with published on those of a new augmented view in each epoch, or with
--cached-views N on N views of each image in turn.
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
    add_memory_format,
    add_quantization,
    make_calibration,
    make_scheme,
    parse_scheme,
    positive_int,
    seed_int,
    worker_int,
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
    parser.add_argument("kind", choices=KINDS, nargs="+", help="one or both")
    parser.add_argument(
        "--checkpoint", metavar="FILE", required=True, help="a backbone, in any format that convert reads"
    )
    parser.add_argument("--data", required=True, help="a folder with train and val of class folders, or cifar10:FOLDER")
    add_bits(parser, BITS)
    add_quantization(parser)
    add_calibration_images(parser, has_file=True)
    parser.add_argument("--images", type=positive_int, help="at most, of each split (default: all)")
    add_image_options(parser)
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="fast", help="of the linear probe (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive_int, help="of the linear probe (default: the protocol's, 100 or 60)")
    parser.add_argument(
        "--batch", type=positive_int, help="of the linear probe; LR is scaled in proportion (default: 512 or 2048)"
    )
    parser.add_argument(
        "--cached-views",
        metavar="N",
        type=positive_int,
        help="of each image, with --protocol published (default: new views in each epoch)",
    )
    parser.add_argument(
        "--workers", type=worker_int, default=4, help="processes that load augmented views (default: %(default)s)"
    )
    add_device(parser)
    add_memory_format(parser)
    parser.add_argument("--method", default="", help="its name in the rows (default: the checkpoint's)")
    parser.add_argument("--seed", type=seed_int, default=0, help="of the choice of images, and of views (default: 0)")
    parser.add_argument("--resume", action="store_true", help="skip the rows that --out already has")
    parser.add_argument("--out", default="probes/results.jsonl", help="file to append rows to (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    from ssql_det.cli.report import write_page_beside
    from ssql_det.core import rows
    from ssql_det.core.console import print_outcome, print_table, set_up_logging
    from ssql_det.pretrain.classifiers import LinearProtocol
    from ssql_det.pretrain.probe_checkpoint import ProbeSettings, probe_checkpoint
    from ssql_det.quant.quantization_file import check_given_calibration, read_quantization

    set_up_logging()
    rows.check_results_file(options.out)
    scheme, calibration = make_scheme(options), make_calibration(options)
    if options.quantization is not None:
        content = read_quantization(options.quantization)
        calibration = check_given_calibration(options.quantization, content.calibration, options.calib_images)
        scheme = parse_scheme(options) or content.scheme
    settings = ProbeSettings(
        kinds=tuple(options.kind),
        seed=options.seed,
        device=options.device,
        memory_format=options.memory_format,
        workers=options.workers,
        num_calibration_images=calibration.images,
        scheme=scheme,
        max_images=options.images,
        image_size=options.size,
        protocol=LinearProtocol(options.protocol, options.epochs, options.batch, options.cached_views),
        method_name=options.method,
        quantization_file=None if options.quantization is None else Path(options.quantization),
    )
    results, out = [], Path(options.out)
    cached = rows.read_rows(out) if options.resume and out.exists() else []
    for row in probe_checkpoint(options.checkpoint, options.data, options.bits, options.recipe, settings, cached):
        if row not in cached:
            rows.append_row(out, row)
        results.append(row)
        _logger.info("%s: %s", row.bits, ", ".join(f"{name} {value:.2f}" for name, value in row.metrics.items()))
    cells = [(row.bits, *(f"{value:.2f}" for value in row.metrics.values())) for row in results]
    print_table(("bits", *results[0].metrics), cells, f"{Path(options.checkpoint).name} on {results[0].dataset}")
    page = write_page_beside(out)
    print_outcome(out)
    print_outcome(page, "tables", "--table", "1", "--rows", out, "--dataset", results[0].dataset)
