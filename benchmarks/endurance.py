"""Check that a long training leaks no memory and no open files: ``python benchmarks/endurance.py``, some minutes.

Trains the narrow C4 detector on small toy images for 2,000 iterations, with a checkpoint every 200 and an evaluation at
two bit-widths every 500. For each new line in its ``metrics.jsonl``, the memory and the number of open files of the
process are read. After a fifth of the lines as warm-up, the last tenth is compared with the first: the median of memory
and the minimum of open files (images are opened now and then). Limits: memory grows by less than 2 %, the open files
not at all, and every loss is finite. Exit code 1 if one is exceeded.
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

from timing import read_memory

CONFIG = Path(__file__).parents[1] / "configs" / "detection" / "toy_voc_narrow_c4.yaml"
RUN = "from ssql_det.cli.main import main; main()"
KEYS = (
    *("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64, 72)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "30"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "12"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.02"),
    *("SSQL_DET.EVAL_BITS", "['FP', '4w4a']", "SSQL_DET.CALIB_IMAGES", "4", "TEST.PRECISE_BN.NUM_ITER", "10"),
)
WARM_UP, MAX_GROWTH = 0.2, 1.02


class Sample(NamedTuple):
    """Memory and number of open files of a process at one time."""

    memory: int  # without mapped files, whose pages the kernel loads and drops
    files: int


def sample_process(command: Sequence[str], metrics: Path) -> list[Sample]:
    """Run a command, and take a sample of its process for each new line in the file ``metrics``."""
    samples: list[Sample] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if lines > len(samples):
            sample = Sample(read_memory("RssAnon", process.pid), len(os.listdir(f"/proc/{process.pid}/fd")))
            samples += [sample] * (lines - len(samples))
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return samples


def split_first_and_last(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The first tenth after the warm-up, and the last tenth."""
    after = samples[int(WARM_UP * len(samples)) :]
    tenth = max(1, len(samples) // 10)
    return after[:tenth], after[-tenth:]


def train(iterations: int, folder: str) -> tuple[list[Sample], list[float]]:
    """Train in a process; returns samples of it, and the losses."""
    from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

    os.environ["DETECTRON2_DATASETS"] = str(make_toy_data(f"{folder}/toy", ToyDataSettings(scenes=20, crops=20), 2))
    run_keys = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.CHECKPOINT_PERIOD": max(1, iterations // 10),
        "SSQL_DET.EVAL_PERIOD": max(1, iterations // 4),
        "OUTPUT_DIR": f"{folder}/run",
    }
    keys = [*KEYS, *(str(each) for pair in run_keys.items() for each in pair)]
    metrics = Path(folder, "run", "metrics.jsonl")
    samples = sample_process([sys.executable, "-c", RUN, "train-det", "--config-file", str(CONFIG), *keys], metrics)
    lines = map(json.loads, metrics.read_text().splitlines())
    return samples, [line["total_loss"] for line in lines if "total_loss" in line]


def describe(is_kept: bool) -> str:
    return "kept" if is_kept else "EXCEEDED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000, help="of the training (default: %(default)s)")
    iterations = parser.parse_args().iterations
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        samples, losses = train(iterations, folder)
    print(f"{iterations} iterations in {time.perf_counter() - start:.0f} s, {len(samples)} samples")

    before, after = (statistics.median(each.memory for each in part) / 1e6 for part in split_first_and_last(samples))
    is_flat = after / before < MAX_GROWTH
    print(
        f"memory: {before:.1f} MB, then {after:.1f} MB = {after / before:.4f} (limit {MAX_GROWTH}, {describe(is_flat)})"
    )
    first, last = (min(each.files for each in part) for part in split_first_and_last(samples))
    print(f"open files: {first}, then {last} (limit: no growth, {describe(last <= first)})")
    is_finite = all(map(math.isfinite, losses))
    print(f"losses: {losses[0]:.3f}, then {losses[-1]:.3f} (all must be finite: {describe(is_finite)})")
    raise SystemExit(not (is_flat and last <= first and is_finite))


if __name__ == "__main__":
    main()
