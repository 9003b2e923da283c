"""Whether a long training stays as it began: ``python benchmarks/endurance.py``, some minutes.

2,000 iterations of the narrow C4 detector on small toy images, with a checkpoint every 200 and a look at two widths
every 500, as a command of its own. Its memory and its open files are read from outside whenever it has written a line
of its curves. A fifth of the lines is warming up; then the last tenth is compared with the first: the median of memory,
and the least of open files, for an image is open now and then. Bars: memory grows by less than 2 %, open files not at
all, every loss is a number. Exit code 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from timing import memory

CONFIG = Path(__file__).parents[1] / "configs" / "detection" / "toy_voc_narrow_c4.yaml"
RUN = "from ssql_det.cli.main import main; main()"
KEYS = (
    *("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64, 72)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "30"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "12"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.02"),
    *("SSQL_DET.EVAL_BITS", "['FP', '4w4a']", "SSQL_DET.CALIB_IMAGES", "4", "TEST.PRECISE_BN.NUM_ITER", "10"),
)
WARM_UP, MEMORY = 0.2, 1.02


class Sample(NamedTuple):
    """What a process has while it lives."""

    memory: int  # of its own: pages of the files that it has mapped come and go as the kernel likes
    files: int


def watched(command: Sequence[str], curves: Path) -> list[Sample]:
    """Run a command to its end; a sample of its process for each line that ``curves`` has grown by."""
    samples: list[Sample] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        lines = curves.read_bytes().count(b"\n") if curves.exists() else 0
        if lines > len(samples):
            held = Sample(memory("RssAnon", process.pid), len(os.listdir(f"/proc/{process.pid}/fd")))
            samples += [held] * (lines - len(samples))
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return samples


def ends(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The first tenth behind the warming up, and the last."""
    after = samples[int(WARM_UP * len(samples)) :]
    tenth = max(1, len(samples) // 10)
    return after[:tenth], after[-tenth:]


def trained(iterations: int, folder: str) -> tuple[list[Sample], list[float]]:
    """Samples of a training, and its losses."""
    from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

    os.environ["DETECTRON2_DATASETS"] = str(make_toy_data(f"{folder}/toy", ToyDataSettings(scenes=20, crops=20), 2))
    lasting = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.CHECKPOINT_PERIOD": max(1, iterations // 10),
        "SSQL_DET.EVAL_PERIOD": max(1, iterations // 4),
        "OUTPUT_DIR": f"{folder}/run",
    }
    keys = [*KEYS, *(str(each) for pair in lasting.items() for each in pair)]
    curves = Path(folder, "run", "metrics.jsonl")
    samples = watched([sys.executable, "-c", RUN, "train-det", "--config-file", str(CONFIG), *keys], curves)
    lines = map(json.loads, curves.read_text().splitlines())
    return samples, [line["total_loss"] for line in lines if "total_loss" in line]


def said(is_kept: bool) -> str:
    return "kept" if is_kept else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000, help="(default: %(default)s)")
    iterations = parser.parse_args().iterations
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        samples, losses = trained(iterations, folder)
    print(f"{iterations} iterations in {time.perf_counter() - start:.0f} s, {len(samples)} samples")

    before, after = (statistics.median(each.memory for each in end) / 1e6 for end in ends(samples))
    is_flat = after / before < MEMORY
    print(f"memory: {before:.1f} MB, then {after:.1f} MB = {after / before:.4f} (bar {MEMORY}, {said(is_flat)})")
    first, last = (min(each.files for each in end) for end in ends(samples))
    print(f"open files: {first}, then {last} (bar: no more, {said(last <= first)})")
    is_finite = all(map(math.isfinite, losses))
    print(f"losses: {losses[0]:.3f}, then {losses[-1]:.3f} (bar: all finite, {said(is_finite)})")
    raise SystemExit(not (is_flat and last <= first and is_finite))


if __name__ == "__main__":
    main()
