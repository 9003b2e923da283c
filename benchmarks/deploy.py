"""Compare an exported detector in onnxruntime with the engine's own inference: ``python benchmarks/deploy.py``.

Reference detectors with seeded weights, and settings that give exactly 1,000 regions and 100 detections in a seeded
480x640 image. Exports each with ``ssql-det export``, without its comparison, and prints seconds and peak memory of that
process. Then alternates the engine's inference, in plain torch as a user of the engine has it, and onnxruntime's, in
processes of their own with the same number of threads, from the resized image to boxes, scores, classes and masks;
prints medians of the times and the peak memory of both processes, imports and loading included. Linux only. Exit code 1
if a limit is exceeded.

The threads of onnxruntime, and those of torch, spin for some 40 ms after a run before they sleep, and would slow down
the other process. To switch that off would change what users have. Hence there is a pause before each run, long enough
for the threads of both processes to sleep.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Child, alternate, read_memory, report, run_script, serve

# The config of each detector, and the limits of its export: seconds and GiB.
DETECTORS = {"coco_mask_r50_fpn": (60.0, 4.0), "voc_r18_c4": (60.0, 4.0)}
KEYS = (
    *("MODEL.DEVICE", "cpu", "MODEL.RPN.NMS_THRESH", "0.999"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.999"),
)
REGIONS, DETECTIONS, SIZE = 1000, 100, (480, 640)
TIME_LIMIT, MEMORY_LIMIT = 0.8, 1.0  # of onnxruntime / torch
SCORE_TOLERANCE = 1e-3
PAUSE = 0.2  # seconds before each run
GIB = 2**30

Functions = dict[str, Callable[[], object]]


def make_image() -> Any:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def make_config(name: str, weights: str) -> Any:
    from ssql_det.core.config_files import find_config
    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS

    return read_config(find_config(name), [*KEYS, "MODEL.WEIGHTS", weights], SSQL_DET_DEFAULTS)


def prepare_weights(name: str, weights: str) -> Functions:
    """Save a detector with seeded weights."""
    import torch

    from ssql_det.detect.detector import build_detector

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.minid2.modules import seed_weights

    def save() -> None:
        model = seed_weights(build_detector(make_config(name, "")))
        torch.save({"model": model.float().state_dict()}, weights)

    return {"save": save}


def prepare_export(name: str, weights: str, file: str) -> Functions:
    from ssql_det.cli.main import main

    options = ["--config-file", name, "--check-images", "0", "--out", file]
    return {"export": lambda: main(["export", *options, "MODEL.WEIGHTS", weights, *KEYS])}


def prepare_torch(name: str, weights: str, threads: str) -> Functions:
    import torch

    from ssql_det.detect.detector import load_trained_detector

    torch.set_num_threads(int(threads))
    model: Any = load_trained_detector(make_config(name, weights))[0].eval()
    batch = [{"image": torch.from_numpy(make_image()).permute(2, 0, 1).contiguous()}]

    @torch.no_grad()
    def infer() -> Any:
        return model.inference(batch, do_postprocess=False)[0]

    def detect() -> None:
        infer()

    def count() -> dict[str, object]:
        """The number of regions, and the scores of the detections."""
        regions = []
        hook = model.proposal_generator.register_forward_hook(lambda _, inputs, output: regions.append(output[0][0]))
        scores = infer().scores.tolist()
        hook.remove()
        return {"regions": len(regions[0]), "scores": scores}

    return {"detect": detect, "count": count}


def prepare_onnxruntime(file: str, threads: str) -> Functions:
    from ssql_det.deploy import Detector

    detector, image = Detector(file, int(threads)), make_image()

    def detect() -> None:
        detector.detect_resized(image)

    def count() -> dict[str, object]:
        return {"scores": detector.detect_resized(image).scores.tolist()}

    return {"detect": detect, "count": count}


PREPARE = {
    "weights": prepare_weights,
    "export": prepare_export,
    "torch": prepare_torch,
    "onnxruntime": prepare_onnxruntime,
}


def serve_one(kind: str, *arguments: str) -> None:
    serve(PREPARE[kind](*arguments))


def measure_export(name: str, weights: str, file: str) -> bool:
    """Print the seconds and the peak memory of a process that exports; returns whether both are within the limits."""
    start = time.perf_counter()
    child = Child(__file__, "export", name, weights, file)
    child.run("export")
    seconds, gib = time.perf_counter() - start, read_memory("VmHWM", child.process.pid) / GIB
    child.close()
    most_seconds, most_gib = DETECTORS[name]
    print(f"{name}: export {seconds:.1f} s (limit {most_seconds}), peak memory {gib:.2f} GiB (limit {most_gib})")
    return seconds <= most_seconds and gib <= most_gib


def compare(name: str, weights: str, file: str, threads: str, rounds: int) -> bool:
    """Print time and memory of onnxruntime relative to torch; returns whether both are within the limits."""
    torch = Child(__file__, "torch", name, weights, threads)
    onnxruntime = Child(__file__, "onnxruntime", file, threads)
    expected, found = torch.run("count"), onnxruntime.run("count")
    assert expected["regions"] == REGIONS, expected["regions"]
    assert len(expected["scores"]) == len(found["scores"]) == DETECTIONS, (
        len(expected["scores"]),
        len(found["scores"]),
    )
    assert np.allclose(expected["scores"], found["scores"], rtol=0, atol=SCORE_TOLERANCE), (
        "they detect different objects"
    )
    times = alternate(*(partial(child.run, "detect") for child in (torch, onnxruntime)), rounds, PAUSE)
    is_fast = report(f"{name}: onnxruntime / torch, {threads} threads", *times, TIME_LIMIT)
    peaks = [read_memory("VmHWM", child.process.pid) for child in (torch, onnxruntime)]
    ratio = peaks[1] / peaks[0]
    print(
        f"{name}: peak memory {peaks[1] / GIB:.2f} GiB / {peaks[0] / GIB:.2f} GiB = {ratio:.3f} (limit {MEMORY_LIMIT})"
    )
    torch.close()
    onnxruntime.close()
    return is_fast and ratio <= MEMORY_LIMIT


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(default: all cores)")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each (default: %(default)s)")
    options = parser.parse_args()
    is_kept = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.detectors:
            weights, file = f"{folder}/{name}.pth", f"{folder}/{name}.onnx"
            child = Child(__file__, "weights", name, weights)
            child.run("save")
            child.close()
            is_kept.append(measure_export(name, weights, file))
            is_kept.append(compare(name, weights, file, str(options.threads), options.rounds))
    return all(is_kept)


if __name__ == "__main__":
    run_script(main, serve_one)
