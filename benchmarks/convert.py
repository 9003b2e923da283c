"""Time and memory of converting a ResNet-50 checkpoint.

    python benchmarks/convert.py

To each format, in nine processes; reports medians. Limits: 3 seconds beyond reading and writing the file, and a peak
memory of 3 times the file's size above that of the imports.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import read_memory, reset_peak_memory

MAX_SECONDS, MAX_FILE_SIZES = 3.0, 3.0
RUNS = 9


def measure_in_child(source: str, out: str, format: str) -> None:
    """Convert once; print the seconds beyond reading and writing, and the peak memory above that of the imports."""
    import torch
    import torchvision  # noqa: F401 (so that its import is not measured)

    from ssql_det.convert import read_checkpoint, read_content, write_checkpoint

    torch.set_num_threads(2)
    reset_peak_memory()  # without the imports
    before = read_memory("VmRSS")
    start = time.perf_counter()
    write_checkpoint(read_checkpoint(source), out, format, replace=True)
    total = time.perf_counter() - start
    peak = read_memory("VmHWM") - before
    start = time.perf_counter()
    read_content(source)
    content = Path(out).read_bytes()
    with open(out, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    print(json.dumps({"beyond": total - (time.perf_counter() - start), "total": total, "peak": peak}))


def main() -> None:
    import torch
    import torchvision

    from ssql_det.convert import get_writers

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "resnet50.pth"
        torch.save(torchvision.models.resnet50(weights=None).state_dict(), source)
        size = source.stat().st_size
        print(f"torchvision's ResNet-50, {size / 1e6:.0f} MB; medians of {RUNS} processes")
        is_kept = True
        for name, writer in get_writers().items():
            out = Path(folder) / f"out{writer.suffixes[0]}"
            command = [sys.executable, __file__, str(source), str(out), name]
            runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(RUNS)]
            keys = ("beyond", "total", "peak")
            beyond, total, peak = (statistics.median(run[key] for run in runs) for key in keys)
            is_kept &= beyond < MAX_SECONDS and peak < MAX_FILE_SIZES * size
            print(
                f"  to {name:15} {total:5.2f} s, {beyond:5.2f} s beyond reading and writing, {peak / size:4.2f} sizes"
            )
    print(f"limits: {MAX_SECONDS:.0f} s, {MAX_FILE_SIZES:.0f} file sizes: {'kept' if is_kept else 'EXCEEDED'}")
    raise SystemExit(not is_kept)


if __name__ == "__main__":
    measure_in_child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
