"""Speed, peak memory and reads back of training steps on a GPU; run by ``gpu.py``."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from ssql_step import Step, compute_lower_bound
from torchvision.io import write_png

import ssql_det
from ssql_det.pretrain.config import read_config
from ssql_det.pretrain.loop import pretrain

MEMORY_FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
MAX_READS = {"SimSiam": 1, "SSQL": 2}  # is all finite? and for SSQL: are the observed ranges?
_PACKAGE = Path(ssql_det.__file__).parent


@dataclass(frozen=True)
class StepSize:
    """The network and the batches of the timed steps."""

    arch: str
    side: int  # of a view, in pixels
    hidden: int
    batches: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class StepCost:
    seconds: float  # median
    peak_bytes: int


ON_GPU = StepSize("resnet50", 224, 512, batches=(64, 256), rounds=10)
REHEARSAL = StepSize("narrow_resnet", 32, 8, batches=(4,), rounds=2)


def report_speed(device: torch.device) -> None:
    """Print images per second and peak memory of SimSiam and SSQL in both memory formats, and their ratios."""
    size = ON_GPU if device.type == "cuda" else REHEARSAL
    for images in size.batches:
        costs: dict[tuple[str, str], StepCost] = {}
        for stored, memory_format in MEMORY_FORMATS.items():
            for title, is_ssql in (("SimSiam", False), ("SSQL", True)):
                name = f"{size.arch}, {size.side} px, batch {images}, {stored}, {title}"
                try:
                    cost = _measure(size, is_ssql, images, device, memory_format)
                except torch.cuda.OutOfMemoryError:
                    print(f"{name}: skipped, out of memory", flush=True)
                    continue
                finally:
                    _free_memory(device)
                costs[stored, title] = cost
                speed, memory = images / cost.seconds, cost.peak_bytes / 2**30
                print(
                    f"{name}: {speed:.0f} images/s, {cost.seconds * 1e3:.1f} ms a step, peak {memory:.2f} GiB",
                    flush=True,
                )
        _print_ratios(costs, images)
    _print_lower_bound(size, device)


def _measure(
    size: StepSize, is_ssql: bool, images: int, device: torch.device, memory_format: torch.memory_format
) -> StepCost:
    settings = (size.arch, size.side, size.hidden, images, device.type, memory_format, torch.bfloat16)
    step = Step("simsiam", is_ssql, *settings)
    with _choosing_fastest_kernels():
        for _ in range(4):  # SSQL quantizes at other bit-widths in each step, so more than one is warm-up
            step()
        _synchronize(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for _ in range(size.rounds):
            start = time.perf_counter()
            step()
            _synchronize(device)
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return StepCost(statistics.median(seconds), peak)


def _print_ratios(costs: dict[tuple[str, str], StepCost], images: int) -> None:
    for (stored, title), cost in costs.items():
        alone = costs.get((stored, "SimSiam"))
        if title == "SSQL" and alone:
            time_ratio, memory_ratio = cost.seconds / alone.seconds, cost.peak_bytes / max(alone.peak_bytes, 1)
            print(f"batch {images}, {stored}: SSQL / SimSiam: time {time_ratio:.3f}, peak memory {memory_ratio:.3f}")
        contiguous = costs.get(("contiguous", title))
        if stored == "channels last" and contiguous:
            ratio = contiguous.seconds / cost.seconds
            print(f"batch {images}, {title}: channels last / contiguous: images per second {ratio:.3f}", flush=True)


def _print_lower_bound(size: StepSize, device: torch.device) -> None:
    """The ratio of the times of the passes through the network alone."""
    settings = (size.arch, size.side, size.hidden, size.batches[0], device.type, torch.channels_last, torch.bfloat16)
    alone, ssql = (Step("simsiam", is_ssql, *settings) for is_ssql in (False, True))
    # SimSiam has only passes with gradients, so the cost of one relative to a pass without does not matter.
    print(f"SSQL / SimSiam: lower bound of time {compute_lower_bound(alone, ssql, 3):.3f}", flush=True)


def count_reads(device: torch.device) -> dict[str, Counter[str]]:
    """For SimSiam and SSQL, the waits for the GPU in each step of the real loop, by the line that waits.

    They are the difference between a long and a short run, so what a run does once does not count.
    """
    reads = {}
    for title, is_ssql in (("SimSiam", False), ("SSQL", True)):
        short_epochs, long_epochs = 1, 5
        _pretrain(is_ssql, short_epochs, device)  # what is done once in a process
        short, long = (_pretrain(is_ssql, epochs, device) for epochs in (short_epochs, long_epochs))
        steps = 2 * (long_epochs - short_epochs)
        reads[title] = Counter({line: round(count / steps, 2) for line, count in (long - short).items()})
    return reads


def _pretrain(is_ssql: bool, epochs: int, device: torch.device) -> Counter[str]:
    """The waits of a run of two steps an epoch, in bfloat16, on random photos."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for index in range(16):
            pixels = torch.randint(256, (3, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
            write_png(pixels, str(images / f"{index:02}.png"))
        words = [
            *("SSQL.ENABLED", is_ssql, "BACKBONE", "narrow_resnet", "SIMSIAM.DIM", 32, "SIMSIAM.HIDDEN", 16),
            *("DATA.TRAIN", images, "DATA.SIZE", 64, "DATA.WORKERS", 0, "OPTIM.BATCH", 8, "OPTIM.EPOCHS", epochs),
            *("PERIODS.LOG", 1000, "PERIODS.CHECKPOINT", 1000, "AMP", True, "DEVICE", device.type),
            *("OUTPUT_DIR", Path(folder) / "run"),
        ]
        config = read_config(None, [*map(str, words)])
        with counting_waits() as waits:
            pretrain(config)
    return waits


@contextmanager
def counting_waits() -> Iterator[Counter[str]]:
    """Count the operations that wait for the GPU, by the innermost line of this package that caused them.

    A wait in a backward pass counts for the line that called ``backward``.
    """
    waits: Counter[str] = Counter()

    def note(message: Warning | str, *_details: object) -> None:
        if "synchronizing CUDA operation" in str(message):
            waits[_find_line()] += 1

    with warnings.catch_warnings(), _warning_of_waits():
        warnings.simplefilter("always")
        warnings.showwarning = note  # catch_warnings restores it
        yield waits


@contextmanager
def _warning_of_waits() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _find_line() -> str:
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE)}:{frame.lineno} {frame.line}"
    return "outside of the package"


@contextmanager
def _choosing_fastest_kernels() -> Iterator[None]:
    """As in the training loop."""
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = previous


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
