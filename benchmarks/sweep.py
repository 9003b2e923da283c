"""What five bit-widths cost beside one: a sweep of FP, 8, 6, 5 and 4 bits against an evaluation at full precision.

    python benchmarks/sweep.py

50 toy images, 10 to calibrate with, scope all, loading and scoring included, in turns; for both toy detectors with
seeded weights. Bars: 6 times the evaluation's time, 1.3 times its peak memory above the imports. Exit code 1 if one is
missed.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import alternate, forget_peak, memory, report

HERE = Path(__file__).parent
CONFIGS = ("toy_voc_narrow_c4.yaml", "toy_coco_narrow_fpn.yaml")
IMAGES, CALIBRATION = 50, 10
TIME, MEMORY = 6.0, 1.3


def jobs(name: str, folder: Path):
    """The evaluation, and the sweep, of one detector."""
    import torch

    from ssql_det.convert import read
    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DEFAULTS
    from ssql_det.detect.data import evaluation_images
    from ssql_det.detect.evaluate import evaluate
    from ssql_det.detect.measure import Plan, parse_widths
    from ssql_det.detect.sweep import sweep
    from ssql_det.detect.weights import build_detector

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    config = HERE.parent / "configs" / "detection" / name
    cfg = read_config(config, ["MODEL.DEVICE", "cpu"], SSQL_DEFAULTS)
    model = build_detector(cfg).eval()
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    checkpoint, dataset = read(folder / "model.pth"), cfg.DATASETS.TEST[0]

    def evaluated() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            evaluate(model, evaluation_images(cfg, dataset), dataset, scratch)

    def swept() -> None:
        with tempfile.TemporaryDirectory() as out:
            own = read_config(config, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", out], SSQL_DEFAULTS)
            list(sweep(own, name, model, checkpoint, parse_widths("FP,8,6,5,4"), Plan("all", CALIBRATION)))

    return evaluated, swept


def measure(name: str, which: str, folder: str) -> None:
    """In a child: the peak of memory of one job, above the imports and the model."""
    job = jobs(name, Path(folder))[which == "sweep"]
    forget_peak()
    before = memory("VmRSS")
    start = time.perf_counter()
    job()
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": memory("VmHWM"), "before": before}))


def main() -> None:
    from ssql_det.toydata.dataset import Settings, make_toy_data

    kept = True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = str(make_toy_data(f"{folder}/toy", Settings(4 * IMAGES, 100), 2))
        for name in CONFIGS:
            evaluated, swept = jobs(name, Path(folder))
            kept &= report(f"{name}: sweep / evaluation", *alternate(evaluated, swept, rounds=5), TIME)
            peaks = {}
            for which in ("evaluation", "sweep"):
                command = [sys.executable, __file__, name, which, folder]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                peaks[which] = json.loads(said.splitlines()[-1])["peak"]
            ratio = peaks["sweep"] / peaks["evaluation"]
            kept &= ratio <= MEMORY
            print(f"{name}: peak memory of the process {ratio:.2f} (bar {MEMORY})")
    raise SystemExit(not kept)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
