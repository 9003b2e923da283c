"""Compare an exported detector in OpenVINO with the same file in onnxruntime, on its test images:

    python benchmarks/compare_openvino.py --config-file F --bits 8,4 MODEL.WEIGHTS W

Needs OpenVINO. Exports the detector in float and at each bit-width, with ranges of these images, and prints for each
file the number of detections, how many of them only one of the two runtimes has, and the greatest differences of the
others. Exit code 1 if the float files differ by more than an export may differ from the engine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ssql_det.d2 import read_config, set_up_logging
from ssql_det.deploy import Detector
from ssql_det.deploy.agreement import BOX_TOLERANCE, SCORE_TOLERANCE, match_detections
from ssql_det.deploy.bench_files import BenchImages, BenchIntegers, export_for_bench
from ssql_det.deploy.check_images import load_test_images
from ssql_det.deploy.openvino_detector import OpenVINODetector
from ssql_det.detect import SSQL_DET_DEFAULTS
from ssql_det.detect.detector import load_trained_detector
from ssql_det.quant import Bits, Scheme, parse_bit_widths

SAME_BOX = 0.01  # of the longer side


def compare(file: Path, images: list[Any], threads: int) -> tuple[int, float, float]:
    """Print a line; the number of detections that one runtime has alone, and the greatest differences of the others: of
    boxes in longer sides, and of scores."""
    onnxruntime, openvino = Detector(file, threads), OpenVINODetector(file, threads)
    found = alone = differing = 0
    box_difference = score_difference = 0.0
    for image in images:
        ours, theirs = onnxruntime.detect_resized(image), openvino.detect_resized(image)
        side = max(ours.size)
        first, second = match_detections(ours.boxes, ours.classes, theirs.boxes, theirs.classes, SAME_BOX * side).T
        found += len(ours)
        alone += (unmatched := len(ours) + len(theirs) - 2 * len(first))
        differing += unmatched > 0
        boxes = np.abs(ours.boxes[first] - theirs.boxes[second]).max(initial=0) / side
        scores = np.abs(ours.scores[first] - theirs.scores[second]).max(initial=0)
        box_difference, score_difference = max(box_difference, boxes), max(score_difference, scores)
    print(
        f"{file.stem}: {found} detections in {len(images)} images, {alone} that one has alone in {differing} images; "
        f"others: boxes {box_difference:.1e} of the longer side, scores {score_difference:.1e}",
        flush=True,
    )
    return alone, box_difference, score_difference


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--bits", default="8,4,2w4a", help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=100, help="of DATASETS.TEST (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs, such as MODEL.WEIGHTS FILE")
    options = parser.parse_args()
    set_up_logging()
    cfg = read_config(options.config_file, [*options.overrides, "MODEL.DEVICE", "cpu"], SSQL_DET_DEFAULTS)
    model, checkpoint = load_trained_detector(cfg)
    images = BenchImages(load_test_images(cfg, options.images), "")
    widths = [bits for bits in parse_bit_widths(options.bits) if bits != Bits.FP]
    integers = BenchIntegers.calibrate(cfg, model, Scheme(placement="integer"), widths, images)
    pixels = [BenchImages([batch], "").timed for batch in images.batches]
    with tempfile.TemporaryDirectory() as folder:
        files = export_for_bench(cfg, "", model, checkpoint, integers, images, Path(folder))
        float_result, *_ = [compare(file, pixels, options.threads) for file, _ in files.values()]
    alone, box_difference, score_difference = float_result
    return alone == 0 and box_difference <= BOX_TOLERANCE and score_difference <= SCORE_TOLERANCE


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
