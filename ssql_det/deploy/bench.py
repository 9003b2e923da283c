"""Measure one detector in each way of running it: seconds per image, peak memory, size of the file.

Each has a process of its own, and they detect in turn, so that what else the machine does slows all of them down. Their
threads wait for the next image in a loop, up to some 40 ms, which would slow down the other processes. To switch that
off would change what users have; hence there is a pause before each run, in which the threads fall asleep.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

import ssql_det
from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.files import check_regular_file
from ssql_det.core.function_process import FunctionProcess
from ssql_det.core.json_lines import append_record, read_records
from ssql_det.core.rows import ONNXRUNTIME, OPENVINO, RUNTIMES, package_versions, timestamp
from ssql_det.deploy import bench_process
from ssql_det.deploy.bench_process import TORCH, TORCH_FAST
from ssql_det.deploy.cpu import CPU, describe_cpu
from ssql_det.deploy.metadata import FLOAT_BITS

RESULTS_NAME = "bench.jsonl"
SCHEMA = 1
WARM_UP_ROUNDS = 2
PAUSE = 0.2  # seconds before each run
_KIND = "a row"


@dataclass(frozen=True)
class BenchCase:
    """A way of running a detector: a runtime of ``bench_process``, at a bit-width, with an exported file; of torch the
    file is the config."""

    runtime: str
    bits: str
    file: Path
    integer_share: float | None = None  # of the multiply-adds

    @property
    def name(self) -> str:
        return f"{self.runtime}, {self.bits}"


@dataclass(frozen=True)
class Measurement:
    """What one case took: the seconds of each round, the process's peak memory in bytes, and what it detected."""

    seconds: Sequence[float]
    peak_memory: int
    detections: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class _BenchProcess(FunctionProcess):
    def __init__(self, case: BenchCase, image: Path, threads: int) -> None:
        self.case = case
        root = os.fspath(Path(ssql_det.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", bench_process.__name__, case.runtime, os.fspath(case.file), os.fspath(image)]
        super().__init__([*command, str(threads)], {"PYTHONPATH": path})
        if "mistake" in self.ready:
            self.close()
            raise UserError(self.ready["mistake"])

    def report_end(self) -> NoReturn:
        if self.process.returncode == -signal.SIGKILL:
            raise UserError(f"{self.case.name}: the process was killed; is there enough memory for all of them?")
        super().report_end()


def measure_cases(
    cases: Sequence[BenchCase], image: NDArray[np.uint8], threads: int, rounds: int, pause: float = PAUSE
) -> list[Measurement]:
    """Run all cases in turn on one resized image [height, width, 3], each with this number of threads."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "image.npy"
        np.save(path, image)
        start = partial(_BenchProcess, image=path, threads=threads)
        processes = [stack.enter_context(start(case)) for case in track(cases, "starting")]
        seconds: list[list[float]] = [[] for _ in cases]
        for _ in track(range(WARM_UP_ROUNDS + rounds), "measuring"):
            for process, times in zip(processes, seconds, strict=True):
                time.sleep(pause)
                times.append(process.run("seconds"))
        return [
            Measurement(times[WARM_UP_ROUNDS:], process.run("memory"), process.ready["detections"])
            for process, times in zip(processes, seconds, strict=True)
        ]


@dataclass(frozen=True)
class BenchSetting:
    """What all rows of a bench share: which detector, which image, on which machine."""

    checkpoint: str  # a file name
    checkpoint_hash: str  # SHA-256 of the file
    config: str  # its file and overrides
    engine: str  # detectron2 or minid2: what torch runs
    scheme: str  # of the integers
    scope: str
    image: str  # a file name of the test set, or noise
    size: tuple[int, int]  # height and width of the resized image
    threads: int
    rounds: int
    cpu: CPU = field(default_factory=describe_cpu)
    versions: Mapping[str, str] = field(default_factory=package_versions)


@dataclass(frozen=True)
class BenchRow:
    """One line of ``bench.jsonl``."""

    runtime: str  # torch, torch-fast, onnxruntime or openvino
    bits: str
    seconds: float  # the median of the rounds
    least_seconds: float
    most_seconds: float
    peak_memory: int  # of the process, in bytes, imports included
    file_size: int | None  # in bytes; None for torch
    integer_share: float | None  # of the multiply-adds, in onnxruntime's graph; None for floats
    detections: int  # in the image
    setting: BenchSetting
    time: str = field(default_factory=timestamp)
    schema: int = SCHEMA

    @classmethod
    def make(cls, case: BenchCase, measured: Measurement, setting: BenchSetting) -> BenchRow:
        times = measured.seconds
        return cls(
            runtime=case.runtime,
            bits=case.bits,
            seconds=measured.median,
            least_seconds=min(times),
            most_seconds=max(times),
            peak_memory=measured.peak_memory,
            file_size=case.file.stat().st_size if case.runtime in RUNTIMES else None,
            integer_share=case.integer_share,
            detections=measured.detections,
            setting=setting,
        )


def list_cases(config: Path, files: Mapping[str, tuple[Path, float | None]], has_openvino: bool) -> list[BenchCase]:
    """All ways of running a detector; ``files`` are the exported ones by bit-width, with their share of integers."""
    cases = [BenchCase(runtime, FLOAT_BITS, config) for runtime in (TORCH, TORCH_FAST)]
    for runtime in (ONNXRUNTIME, *([OPENVINO] if has_openvino else [])):
        for bits, (file, share) in files.items():
            cases.append(BenchCase(runtime, bits, file, share if runtime == ONNXRUNTIME else None))
    return cases


HEADER = ("", "ms", "torch / this", "peak MB", "file MB", "in integers", "detections")


def format_rows(rows: Sequence[BenchRow]) -> list[list[str]]:
    """The cells of a table below ``HEADER``; times are relative to torch's, the first row's."""

    def format_row(row: BenchRow) -> list[str]:
        size, share = row.file_size, row.integer_share
        return [
            f"{row.runtime}, {row.bits}",
            f"{row.seconds * 1e3:.1f}",
            f"{rows[0].seconds / row.seconds:.2f}",
            f"{row.peak_memory / 1e6:,.0f}",
            "-" if size is None else f"{size / 1e6:.2f}",
            "-" if share is None else f"{share:.1%}",
            str(row.detections),
        ]

    return [format_row(row) for row in rows]


def append_bench_row(path: str | os.PathLike[str], row: BenchRow) -> None:
    """Append a row and flush it to disk, as result rows are; the fields of the setting and of the CPU stand beside the
    row's own."""
    record = asdict(row)
    setting = record.pop("setting")
    cpu = setting.pop("cpu")
    append_record(path, {**record, **setting, "cpu": cpu["name"], "cpu_flags": cpu["flags"]}, _KIND)


def check_bench_file(path: Path) -> None:
    """Refuse a path to which rows cannot be appended, before anything is measured."""
    check_regular_file(path)
    if path.exists() and path.stat().st_size and not _has_bench_rows([*read_records(path, _KIND)]):
        raise UserError(f"{path} has other lines than rows of a bench; move it away, or choose another OUTPUT_DIR")


def read_bench_rows(path: str | os.PathLike[str]) -> list[BenchRow] | None:
    """The rows of a bench; ``None`` if the file has other lines."""
    lines = [*read_records(path, _KIND)]
    return [_to_row(record, f"{path}, line {number}") for number, record in lines] if _has_bench_rows(lines) else None


def _to_row(record: dict[str, Any], where: str) -> BenchRow:
    setting: dict[str, Any] = {
        each.name: record.get(each.name) for each in fields(BenchSetting) if each.name not in ("cpu", "size")
    }
    own: dict[str, Any] = {each.name: record.get(each.name) for each in fields(BenchRow) if each.name != "setting"}
    texts = (*map(own.get, ("runtime", "bits")), *map(setting.get, ("checkpoint", "checkpoint_hash", "image")))
    seconds, size, file_size = record.get("seconds"), record.get("size"), record.get("file_size")
    numbers = (seconds, 0 if file_size is None else file_size, setting["threads"])
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, (int, float)) and 0 <= number < 1e12 for number in numbers)
        and isinstance(size, list)
        and len(size) == 2
    ):
        raise UserError(f"{where} is not a row of `ssql-det bench`; was it edited by hand?")
    cpu = CPU(str(record.get("cpu")), tuple(map(str, record.get("cpu_flags") or ())))
    return BenchRow(**own, setting=BenchSetting(**setting, size=(size[0], size[1]), cpu=cpu))


def _has_bench_rows(lines: Sequence[tuple[int, Any]]) -> bool:
    return bool(lines) and all(
        isinstance(record, dict) and {"runtime", "seconds", "schema"} <= record.keys() for _, record in lines
    )
