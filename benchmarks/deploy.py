"""Compare exported networks in onnxruntime, in float and in integers, with torch: ``python benchmarks/deploy.py``.

Reference detectors with seeded weights, and settings that give exactly 1,000 regions and 100 detections in a seeded
480x640 image. Exports each with ``ssql-det export``, without its comparison, and prints seconds and peak memory of that
process. Exports it in integers, with ranges of that image, and prints the sizes of the files and the share of the
multiply-adds that onnxruntime computes in integers. Then runs the engine's inference in plain torch, as a user of the
engine has it, and onnxruntime's, in float and in 8 bits, in turn, in processes of their own with the same number of
threads, from the resized image to boxes, scores, classes and masks (see ``deploy/bench.py``); prints medians of the
times and the peak memory, imports and loading included. The same for the features of a ResNet-50. Linux only. Exit code
1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Child, read_memory, run_script, serve

from ssql_det.core.function_process import read_peak_memory
from ssql_det.core.rows import ONNXRUNTIME
from ssql_det.deploy.bench import PAUSE, WARM_UP_ROUNDS, BenchCase, measure_cases
from ssql_det.deploy.bench_process import TORCH
from ssql_det.deploy.cpu import count_cores, describe_cpu

FLOAT, INT8, INT4, INT2 = "FP", "8w8a", "4w8a", "2w4a"
WIDTHS = (INT8, INT4, INT2)


@dataclass(frozen=True)
class Limits:
    """At most: int8 and float in onnxruntime relative to torch, and int8 relative to float."""

    int8_to_torch: float
    int8_to_float: float | None = None
    float_to_torch: float | None = None


DETECTORS = {"coco_mask_r50_fpn": Limits(1 / 2.5, 1 / 1.8, 0.8), "voc_r18_c4": Limits(1 / 3, 1 / 2, 0.8)}
BACKBONE, BACKBONE_LIMITS = "resnet50", Limits(1 / 3)
EXPORT_LIMITS = (60.0, 4.0)  # seconds, GiB
MEMORY_LIMIT = 1.0  # of onnxruntime in float / torch
FILE_LIMITS = {INT8: 0.27, INT4: 0.15, INT2: 0.09}  # of the float file
LEAST_SHARE = 0.95  # of the multiply-adds, in integers
KEYS = (
    *("MODEL.DEVICE", "cpu", "MODEL.RPN.NMS_THRESH", "0.999"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.999"),
)
REGIONS, DETECTIONS, SIZE = 1000, 100, (480, 640)
SCORE_TOLERANCE = 1e-3
GIB = 2**30

Functions = dict[str, Callable[[], object]]


# ---- in child processes


def make_image() -> Any:
    from ssql_det.deploy.bench_files import BenchImages, make_noise_batch

    return BenchImages([make_noise_batch(*SIZE)], "noise")


def make_config(name: str, weights: str) -> Any:
    from ssql_det.core.config_files import find_config
    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS

    return read_config(find_config(name), [*KEYS, "MODEL.WEIGHTS", weights], SSQL_DET_DEFAULTS)


def seed_weights(network: Any) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.minid2.modules import seed_weights

    return seed_weights(network).float()


def prepare_weights(name: str, folder: str) -> Functions:
    """Save a detector with seeded weights, its config and the image."""
    import torch

    from ssql_det.detect.detector import build_detector

    def save() -> None:
        model = seed_weights(build_detector(make_config(name, "")))
        torch.save({"model": model.state_dict()}, f"{folder}/weights.pth")
        Path(folder, "config.yaml").write_text(make_config(name, f"{folder}/weights.pth").dump())
        np.save(f"{folder}/image.npy", make_image().timed)

    return {"save": save}


def prepare_export(name: str, folder: str) -> Functions:
    """Export in float, by the command."""
    from ssql_det.cli.main import main

    options = ["--config-file", name, "--check-images", "0", "--out", f"{folder}/{FLOAT}.onnx"]
    return {"export": lambda: main(["export", *options, "MODEL.WEIGHTS", f"{folder}/weights.pth", *KEYS])}


def prepare_integers(name: str, folder: str) -> Functions:
    """Export in integers; the share of multiply-adds in integers by bit-width."""
    from ssql_det.deploy.bench_files import BenchIntegers, export_for_bench
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.quant import Bits, Scheme

    def export() -> dict[str, float]:
        cfg = make_config(name, f"{folder}/weights.pth")
        model, checkpoint = load_trained_detector(cfg)
        images, widths = make_image(), [Bits.parse(bits) for bits in WIDTHS]
        integers = BenchIntegers.calibrate(cfg, model, Scheme(placement="integer"), widths, images)
        exported = export_for_bench(cfg, name, model, checkpoint, integers, images, Path(folder))
        shares = {}
        for bits in WIDTHS:
            path, share = exported[bits]
            path.rename(Path(folder, f"{bits}.onnx"))
            shares[bits] = share
        return shares

    return {"export": export}


def prepare_counts(name: str, folder: str) -> Functions:
    """The number of regions, and the scores of the detections in torch and in onnxruntime."""
    import torch

    from ssql_det.deploy import Detector
    from ssql_det.detect.detector import load_trained_detector

    image = np.load(f"{folder}/image.npy")

    @torch.no_grad()
    def count() -> dict[str, object]:
        model: Any = load_trained_detector(make_config(name, f"{folder}/weights.pth"))[0].eval()
        regions = []
        model.proposal_generator.register_forward_hook(lambda _, inputs, output: regions.append(output[0][0]))
        batch = [{"image": torch.from_numpy(image).permute(2, 0, 1).contiguous()}]
        scores = model.inference(batch, do_postprocess=False)[0].scores.tolist()
        found = Detector(f"{folder}/{FLOAT}.onnx").detect_resized(image).scores.tolist()
        return {"regions": len(regions[0]), TORCH: scores, ONNXRUNTIME: found}

    return {"count": count}


def prepare_backbone(folder: str) -> Functions:
    """Save a ResNet-50 with seeded weights, and export it; the share of multiply-adds in integers."""
    import torch

    from ssql_det.backbones import build_backbone
    from ssql_det.deploy.export import export_backbone, make_backbone_graph, make_integers
    from ssql_det.deploy.integer_check import find_coverage
    from ssql_det.pretrain.checkpoint import read_backbone
    from ssql_det.quant import Bits, Quantization, Scheme
    from ssql_det.quant.tracing import trace_pass

    def export() -> float:
        weights = Path(folder, "weights.pth")
        torch.save(seed_weights(build_backbone(BACKBONE).module).state_dict(), weights)
        np.save(f"{folder}/image.npy", make_image().timed)
        pretrained, image = read_backbone(weights), torch.from_numpy(make_image().timed)
        graph, bits = make_backbone_graph(pretrained), Bits.parse(INT8)
        quantization = Quantization(pretrained.backbone.module, scheme=Scheme(placement="integer"))
        quantization.calibrate([image], forward=lambda _, image: graph(image))
        export_backbone(pretrained, SIZE[0], Path(folder, f"{FLOAT}.onnx"))
        file = Path(folder, f"{bits}.onnx")
        export_backbone(pretrained, SIZE[0], file, make_integers(quantization, bits, ""))
        trace = trace_pass(quantization.model, quantization.points, image, lambda _, image: graph(image))
        return find_coverage(file, trace.operations).share

    return {"export": export}


def prepare_features(runtime: str, bits: str, folder: str, threads: str) -> Functions:
    """The seconds for the features of the image."""
    image, compute = np.load(f"{folder}/image.npy"), None
    if runtime == TORCH:
        import torch

        from ssql_det.deploy.export import make_backbone_graph
        from ssql_det.pretrain.checkpoint import read_backbone

        torch.set_num_threads(int(threads))
        graph = make_backbone_graph(read_backbone(f"{folder}/weights.pth"))
        compute = partial(torch.no_grad()(graph), torch.from_numpy(image))
    else:
        from ssql_det.deploy.session import INPUT_NAME, open_session

        session, _ = open_session(f"{folder}/{bits}.onnx", int(threads))
        compute = partial(session.run, None, {INPUT_NAME: image})

    def measure_seconds() -> float:
        start = time.perf_counter()
        compute()
        return time.perf_counter() - start

    return {"seconds": measure_seconds, "memory": read_peak_memory}


PREPARE = {
    "weights": prepare_weights,
    "export": prepare_export,
    "integers": prepare_integers,
    "counts": prepare_counts,
    "backbone": prepare_backbone,
    "features": prepare_features,
}


def serve_one(kind: str, *arguments: str) -> None:
    serve(PREPARE[kind](*arguments))


# ---- in this process


def run_once(kind: str, function: str, *arguments: str) -> Any:
    with Child(__file__, kind, *arguments) as child:
        return child.run(function)


def check(name: str, value: float, limit: float | None, unit: str = "", is_least: bool = False) -> bool:
    """Print a line; returns whether the value is within the limit."""
    is_kept = limit is None or (value >= limit if is_least else value <= limit)
    verdict = "" if limit is None else f" (limit {limit:.3g}, {'kept' if is_kept else 'EXCEEDED'})"
    print(f"{name}: {value:.3f}{unit}{verdict}", flush=True)
    return is_kept


def check_export(name: str, folder: str) -> bool:
    """The seconds and the peak memory of a process that exports in float."""
    start = time.perf_counter()
    with Child(__file__, "export", name, folder) as child:
        child.run("export")
        seconds, gib = time.perf_counter() - start, read_memory("VmHWM", child.process.pid) / GIB
    most_seconds, most_gib = EXPORT_LIMITS
    is_fast = check(f"{name}: export", seconds, most_seconds, " s")
    return check(f"{name}: peak memory of the export", gib, most_gib, " GiB") and is_fast


def check_files(name: str, folder: str, shares: dict[str, float]) -> bool:
    """The sizes of the files relative to the float one, and what runs in integers."""
    float_size = Path(folder, f"{FLOAT}.onnx").stat().st_size
    is_kept = []
    for bits, share in shares.items():
        size = Path(folder, f"{bits}.onnx").stat().st_size
        title = f"{name}: file at {bits} / float, {size / 1e6:.2f} MB / {float_size / 1e6:.2f} MB"
        is_kept.append(check(title, size / float_size, FILE_LIMITS[bits]))
        is_kept.append(check(f"{name}: multiply-adds in integers at {bits}", share, LEAST_SHARE, is_least=True))
    return all(is_kept)


def check_times(name: str, limits: Limits, seconds: Sequence[float]) -> bool:
    """The medians of torch, of onnxruntime in float, and of int8, relative to each other."""
    torch, floats, int8 = seconds
    print(f"{name}: torch {torch * 1e3:.1f} ms, onnxruntime {floats * 1e3:.1f} ms, int8 {int8 * 1e3:.1f} ms")
    is_kept = [
        check(f"{name}: onnxruntime / torch", floats / torch, limits.float_to_torch),
        check(f"{name}: int8 / torch", int8 / torch, limits.int8_to_torch),
        check(f"{name}: int8 / onnxruntime in float", int8 / floats, limits.int8_to_float),
    ]
    return all(is_kept)


def check_memory(name: str, peaks: Sequence[int]) -> bool:
    torch, floats, int8 = (peak / GIB for peak in peaks)
    print(f"{name}: peak memory torch {torch:.2f} GiB, onnxruntime {floats:.2f} GiB, int8 {int8:.2f} GiB")
    return check(f"{name}: peak memory onnxruntime / torch", floats / torch, MEMORY_LIMIT)


def compare_detector(name: str, folder: str, threads: int, rounds: int) -> bool:
    run_once("weights", "save", name, folder)
    is_kept = [check_export(name, folder)]
    shares = run_once("integers", "export", name, folder)
    is_kept.append(check_files(name, folder, shares))
    counts = run_once("counts", "count", name, folder)
    assert counts["regions"] == REGIONS, counts["regions"]
    assert len(counts[TORCH]) == len(counts[ONNXRUNTIME]) == DETECTIONS, [len(counts[TORCH]), len(counts[ONNXRUNTIME])]
    assert np.allclose(counts[TORCH], counts[ONNXRUNTIME], rtol=0, atol=SCORE_TOLERANCE), "different detections"
    cases = [BenchCase(TORCH, FLOAT, Path(folder, "config.yaml"))]
    cases += [BenchCase(ONNXRUNTIME, bits, Path(folder, f"{bits}.onnx")) for bits in (FLOAT, INT8)]
    measured = measure_cases(cases, np.load(f"{folder}/image.npy"), threads, rounds)
    assert [each.detections for each in measured] == [DETECTIONS] * len(cases)
    is_kept.append(check_times(name, DETECTORS[name], [each.median for each in measured]))
    is_kept.append(check_memory(name, [each.peak_memory for each in measured]))
    return all(is_kept)


def compare_backbone(folder: str, threads: int, rounds: int) -> bool:
    share = run_once("backbone", "export", folder)
    is_kept = [check_files(BACKBONE, folder, {INT8: share})]
    cases = ((TORCH, FLOAT), (ONNXRUNTIME, FLOAT), (ONNXRUNTIME, INT8))
    children = [Child(__file__, "features", *case, folder, str(threads)) for case in cases]
    seconds = []
    for _ in range(WARM_UP_ROUNDS + rounds):
        for child in children:
            time.sleep(PAUSE)
            seconds.append(child.run("seconds"))
    timed = np.reshape(seconds, (-1, len(cases)))[WARM_UP_ROUNDS:]
    is_kept.append(check_times(BACKBONE, BACKBONE_LIMITS, np.median(timed, axis=0).tolist()))
    is_kept.append(check_memory(BACKBONE, [child.run("memory") for child in children]))
    for child in children:
        child.close()
    return all(is_kept)


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = (*DETECTORS, BACKBONE)
    parser.add_argument("--networks", nargs="+", choices=networks, default=networks)
    parser.add_argument("--threads", type=int, default=count_cores(), help="(default: all cores)")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each (default: %(default)s)")
    options = parser.parse_args()
    print(f"{describe_cpu()}, {options.threads} thread(s), {options.rounds} rounds")
    is_kept = []
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            compare = compare_backbone if name == BACKBONE else partial(compare_detector, name)
            is_kept.append(compare(folder, options.threads, options.rounds))
    return all(is_kept)


if __name__ == "__main__":
    run_script(main, serve_one)
