"""What low bit-widths do to a pretrained network: loss terms, outliers of weights and t-SNE, in one report.

The report sets several checkpoints side by side. They may be in any format that convert reads; terms of the loss itself
need checkpoints of `ssql-det pretrain`, which contain projector and predictor.
"""

from __future__ import annotations

import argparse
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

HELP = "loss terms, outliers of weights and t-SNE of checkpoints at low bit-widths"
EXAMPLES = (
    "ssql-det analyze --checkpoints runs/ssql/checkpoint.pth --data toy/crops",
    "ssql-det analyze --checkpoints simsiam.pth ssql.pth --data cifar10:datasets --bits FP,8,4 --out compared",
)
BITS = "FP,8,4,2w4a"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoints", metavar="FILE", nargs="+", required=True, help="in any format that convert reads"
    )
    parser.add_argument("--data", required=True, help="a folder with train and val of class folders, or cifar10:FOLDER")
    add_bits(parser, BITS)
    parser.add_argument(
        "--pairs", type=positive_int, default=512, help="of views, for the loss terms (default: %(default)s)"
    )
    parser.add_argument("--points", type=positive_int, default=200, help="images of t-SNE (default: %(default)s)")
    parser.add_argument("--perplexity", type=positive_int, default=30, help="of t-SNE (default: %(default)s)")
    add_scheme(parser)
    add_calibration_images(parser)
    add_image_options(parser)
    add_device(parser)
    parser.add_argument("--seed", type=seed_int, default=0, help="of images, views and t-SNE (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", default="analysis", help="folder of the report (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    import shlex
    import sys

    from ssql_det.analyze.analysis import group_terms_by_features
    from ssql_det.analyze.page import build_csv_files, build_page, build_term_tables
    from ssql_det.core.console import print_outcome, print_table, set_up_logging
    from ssql_det.core.errors import UserError
    from ssql_det.core.run_folder import owning_folder
    from ssql_det.pretrain.analyze_checkpoints import AnalysisSettings, analyze_checkpoints
    from ssql_det.quant import parse_bit_widths
    from ssql_det.report.page_files import write_page, write_text

    set_up_logging()
    settings = AnalysisSettings(
        bit_widths=tuple(parse_bit_widths(options.bits)),
        num_pairs=options.pairs,
        num_calibration_images=options.calib_images,
        num_tsne_images=options.points,
        perplexity=options.perplexity,
        scheme=make_scheme(options),
        augmentation=options.recipe,
        image_size=options.size,
        seed=options.seed,
        device=options.device,
    )
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    with owning_folder(out):
        analyses = list(analyze_checkpoints(options.checkpoints, options.data, settings))
        for file, text in build_csv_files(analyses).items():
            write_text(out / file, text)
        for table in build_term_tables(group_terms_by_features(analyses)):
            print_table(table.header, table.rows, table.caption)
        document = build_page(analyses, shlex.join(["ssql-det", *sys.argv[1:]]))
        path = write_page(document, out / "report.html")
    print_outcome(path, "probe", "knn", "linear", "--checkpoint", options.checkpoints[0], "--data", options.data)
