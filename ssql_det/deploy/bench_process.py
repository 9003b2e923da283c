"""In a process of its own: detect in one image with one runtime, for the times of ``ssql-det bench``.

It imports only what its runtime needs, so that its peak memory is that of a program that detects and does nothing else.
Each call goes from the resized image to boxes, scores, classes and masks on the grids of the boxes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssql_det.core.errors import UserError
from ssql_det.core.function_process import answer, read_peak_memory, serve
from ssql_det.core.rows import ONNXRUNTIME, OPENVINO

TORCH, TORCH_FAST = "torch", "torch-fast"

Detect = Callable[[], int]  # returns the number of detections
Image = NDArray[np.uint8]


def prepare_torch(config: str, image: Image, threads: int) -> Detect:
    """The engine's own inference, as a user of the engine has it; ``config`` is a file."""
    return _prepare_engine(config, image, threads, is_fast=False)


def prepare_fast_torch(config: str, image: Image, threads: int) -> Detect:
    """The engine's inference with norms folded and weights channels-last."""
    return _prepare_engine(config, image, threads, is_fast=True)


def _prepare_engine(config: str, image: Image, threads: int, is_fast: bool) -> Detect:
    import torch

    from ssql_det.core.registry import import_inherited_plugins
    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.evaluation import fast_inference

    import_inherited_plugins()
    torch.set_num_threads(threads)
    model: Any = load_trained_detector(read_config(config, (), SSQL_DET_DEFAULTS))[0].eval()
    if is_fast:
        fast_inference(model).__enter__()  # until the process ends
    batch = [{"image": torch.from_numpy(image).permute(2, 0, 1).contiguous()}]

    @torch.no_grad()
    def detect() -> int:
        return len(model.inference(batch, do_postprocess=False)[0])

    return detect


def prepare_onnxruntime(file: str, image: Image, threads: int) -> Detect:
    from ssql_det.deploy.detector import Detector

    return _prepare_detector(Detector(file, threads), image)


def prepare_openvino(file: str, image: Image, threads: int) -> Detect:
    from ssql_det.deploy.openvino_detector import OpenVINODetector

    return _prepare_detector(OpenVINODetector(file, threads), image)


def _prepare_detector(detector: Any, image: Image) -> Detect:
    return lambda: len(detector.detect_resized(image))


PREPARE = {
    TORCH: prepare_torch,
    TORCH_FAST: prepare_fast_torch,
    ONNXRUNTIME: prepare_onnxruntime,
    OPENVINO: prepare_openvino,
}


def main(runtime: str, file: str, image: str, threads: str) -> None:
    """Serve ``seconds`` of a detection, the number of ``detections`` and the peak ``memory`` in bytes."""
    try:
        detect = PREPARE[runtime](file, np.load(image), int(threads))
        count = detect()
    except UserError as mistake:
        answer({"mistake": str(mistake)})
        return

    def measure_seconds() -> float:
        start = time.perf_counter()
        detect()
        return time.perf_counter() - start

    serve({"seconds": measure_seconds, "memory": read_peak_memory}, ready={"detections": count})


if __name__ == "__main__":
    main(*sys.argv[1:])
