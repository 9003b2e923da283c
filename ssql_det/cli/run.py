"""Detect objects in images with a detector that `ssql-det export` wrote: draw them, and write COCO's JSON.

Needs NumPy, Pillow and onnxruntime, not torch. An image that cannot be read is named and skipped; then the exit code
is 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ssql_det.cli.arguments import worker_int

HELP = "boxes and masks on your own images, by an exported detector, without torch"
EXAMPLES = (
    "ssql-det run detector.onnx photos --out found",
    "ssql-det run detector.onnx photo.jpg holiday --score 0.3 --threads 4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", metavar="DETECTOR.onnx", help="a file that `ssql-det export` wrote")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--out", metavar="DIR", default="found", help="folder for pictures and JSON (default: %(default)s)"
    )
    parser.add_argument("--score", type=float, default=0.5, help="least score of a detection (default: %(default)s)")
    parser.add_argument(
        "--threads", type=worker_int, default=1, help="images that are processed at a time (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import print_outcome
    from ssql_det.core.errors import EXIT_INCOMPLETE, UserError
    from ssql_det.deploy.detector import Detector
    from ssql_det.deploy.folder import count_session_threads, detect_in_images
    from ssql_det.images.reading import check_output_paths, find_images

    if not 0 <= options.score <= 1:
        raise UserError(f"--score must be 0 to 1, got {options.score}")
    paths, out = find_images(options.images), Path(options.out)
    check_output_paths(out, paths)
    detector = Detector(options.detector, count_session_threads(options.threads))
    summary = detect_in_images(detector, paths, out, options.score, options.threads)
    failures = f"; {summary.failed} could not be processed" if summary.failed else ""
    print(f"{summary.objects} objects of score {options.score} or more in {summary.images} image(s){failures}")
    print_outcome(out)
    if summary.failed:
        raise SystemExit(EXIT_INCOMPLETE)
