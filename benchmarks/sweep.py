"""Time and memory of a sweep and of fast inference: ``python benchmarks/sweep.py``.

Compares a sweep of FP, 8, 6, 5 and 4 bits with one evaluation at full precision, for both toy detectors with random
weights: 50 toy images, 10 calibration images, scope all, loading and scoring included. Limits: 6 times the time and 1.3
times the peak memory. Then compares fast inference with the engine's own, for both reference detectors on 480x640
images. Limit: 0.9 times the time. Exit code 1 if a limit is exceeded.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from timing import alternate, read_memory, report, reset_peak_memory

CONFIGS = Path(__file__).parents[1] / "configs" / "detection"
TOYS = ("toy_voc_narrow_c4.yaml", "toy_coco_narrow_fpn.yaml")
REFERENCES = ("voc_r18_c4.yaml", "coco_mask_r50_fpn.yaml")
IMAGES, CALIBRATION, ROUNDS = 50, 10, 7
SWEEP_TIME, SWEEP_MEMORY, FAST_TIME = 6.0, 1.3, 0.9  # limits


def build(name: str):
    """A config and its detector with random weights, on the CPU."""
    import torch

    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS
    from ssql_det.detect.detector import build_detector

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    cfg = read_config(CONFIGS / name, ["MODEL.DEVICE", "cpu"], SSQL_DET_DEFAULTS)
    return cfg, build_detector(cfg).eval()


def make_jobs(name: str, folder: Path):
    """Functions that run the evaluation and the sweep of a toy detector; the sweep can print its times."""
    import torch

    from ssql_det.convert import read_checkpoint
    from ssql_det.detect.evaluation import evaluate
    from ssql_det.detect.evaluation_data import build_evaluation_loader
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.detect.sweep import sweep
    from ssql_det.quant import Calibration, parse_bit_widths

    cfg, model = build(name)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    checkpoint, dataset = read_checkpoint(folder / "model.pth"), cfg.DATASETS.TEST[0]

    def run_evaluation() -> None:
        evaluate(model, build_evaluation_loader(cfg, dataset), dataset)

    widths, plan = parse_bit_widths("FP,8,6,5,4"), QuantizationSettings("all", Calibration(CALIBRATION))

    def run_sweep(print_times: bool = False) -> None:
        sweep_cfg = cfg.clone()
        sweep_cfg.defrost()
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as sweep_cfg.OUTPUT_DIR, timing_passes(model) as passes:
            rows = list(sweep(sweep_cfg, name, model, checkpoint, widths, plan))
        if print_times:
            seconds = ", ".join(f"{row.bits} {row.seconds}" for row in rows)
            total = time.perf_counter() - start
            print(f"  seconds: {seconds}; total {total:.2f}, of which the network takes {sum(passes) / total:.0%}")

    return run_evaluation, run_sweep


@contextmanager
def timing_passes(model):
    """Record the seconds of each pass of a network."""
    starts, seconds = [], []
    hooks = [
        model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())),
        model.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - starts[-1])),
    ]
    yield seconds
    for hook in hooks:
        hook.remove()


def make_inference_jobs(name: str):
    """Functions that run a reference detector on four images: as the engine does, and with fast inference."""
    import torch

    from ssql_det.detect.evaluation import fast_inference

    _, model = build(name)
    generator = torch.Generator().manual_seed(0)
    batches = [[{"image": torch.randint(0, 256, (3, 480, 640), generator=generator)}] for _ in range(4)]

    @torch.no_grad()
    def run_plain() -> None:
        for batch in batches:
            model(batch)

    def run_fast() -> None:
        with fast_inference(model):
            run_plain()

    return run_plain, run_fast


def measure_in_child(name: str, kind: str, folder: str) -> None:
    """Print the peak memory of an evaluation or a sweep."""
    job = make_jobs(name, Path(folder))[kind == "sweep"]
    reset_peak_memory()
    job()
    print(json.dumps(read_memory("VmHWM")))


def run_child(name: str, kind: str, folder: str) -> int:
    """The peak memory of an evaluation or a sweep, in a process of its own."""
    command = [sys.executable, __file__, name, kind, folder]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

    is_kept = True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = str(make_toy_data(f"{folder}/toy", ToyDataSettings(4 * IMAGES, 100), 2))
        for name in TOYS:
            run_evaluation, run_sweep = make_jobs(name, Path(folder))
            is_kept &= report(f"{name}: sweep / evaluation", *alternate(run_evaluation, run_sweep, ROUNDS), SWEEP_TIME)
            run_sweep(print_times=True)
            ratio = run_child(name, "sweep", folder) / run_child(name, "evaluation", folder)
            is_kept &= ratio <= SWEEP_MEMORY
            print(f"{name}: peak memory of the process {ratio:.2f} (limit {SWEEP_MEMORY})")
    for name in REFERENCES:
        is_kept &= report(f"{name}: fast / plain inference", *alternate(*make_inference_jobs(name), ROUNDS), FAST_TIME)
    raise SystemExit(not is_kept)


if __name__ == "__main__":
    measure_in_child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
