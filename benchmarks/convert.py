"""What converting a ResNet-50 costs beyond reading and writing its file, in seconds and in memory.

    python benchmarks/convert.py

Each format is converted in a process of its own, nine times; the median counts. Bars: 3 seconds beyond reading and
writing, and a peak of 3 times the file above the imports.
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

from timing import forget_peak, memory

SECONDS, TIMES_THE_FILE = 3.0, 3.0
RUNS = 9


def measure(source: str, out: str, format: str) -> None:
    """In a child: convert once and print seconds beyond reading and writing, and the peak above the imports."""
    import torch
    import torchvision  # noqa: F401 (an import is not the conversion's cost)

    from ssql_det.convert import read_checkpoint, read_content, write_checkpoint

    torch.set_num_threads(2)
    forget_peak()  # exec and imports are not in it
    before = memory("VmRSS")
    start = time.perf_counter()
    write_checkpoint(read_checkpoint(source), out, format, replace=True)
    total = time.perf_counter() - start
    peak = memory("VmHWM") - before
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
        kept = True
        for name, writer in get_writers().items():
            out = Path(folder) / f"out{writer.suffixes[0]}"
            command = [sys.executable, __file__, str(source), str(out), name]
            runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(RUNS)]
            keys = ("beyond", "total", "peak")
            beyond, total, peak = (statistics.median(run[key] for run in runs) for key in keys)
            kept &= beyond < SECONDS and peak < TIMES_THE_FILE * size
            print(
                f"  to {name:15} {total:5.2f} s, {beyond:5.2f} s beyond reading and writing, {peak / size:4.2f} files"
            )
    print(f"bars: {SECONDS:.0f} s, {TIMES_THE_FILE:.0f} files: {'kept' if kept else 'NOT KEPT'}")
    raise SystemExit(not kept)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
