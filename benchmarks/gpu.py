"""Check and measure everything that runs on a GPU, in under ten minutes: ``python benchmarks/gpu.py``.

=========== ==================================================================================================
correctness each path on the GPU against the CPU: quantizers, contexts, steps of each method, views, detectors
speed       images per second and peak memory of SimSiam and SSQL: ResNet-50, 224 pixels, bfloat16
reads       how often a step of the pretraining loop waits for the GPU, and where
processes   two processes over NCCL against one, where there are two GPUs
=========== ==================================================================================================

Exit code 1 if a check fails, 2 without a GPU. ``--device cpu`` rehearses all parts on a machine without a GPU, with
small networks in the part ``speed``; then the checks compare memory formats and whole batches with single images.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from gpu_steps import MAX_READS, count_reads, report_speed
from support.devices import contexts, detectors, pretraining, quantizers
from support.devices.comparison import Check, CheckResult, full_float32
from support.devices.processes import check_two_processes


def check_correctness(device: torch.device) -> Iterator[CheckResult]:
    for module in (quantizers, contexts, pretraining, detectors):
        for check in module.CHECKS.values():
            with full_float32():
                yield from catch_errors(check, device)


def measure_speed(device: torch.device) -> Iterator[CheckResult]:
    report_speed(device)
    yield from ()


def check_reads(device: torch.device) -> Iterator[CheckResult]:
    for title, reads in count_reads(device).items():
        for line, count in reads.most_common():
            print(f"{title}, a step waits {count:g} times for the GPU in {line}")
        if device.type == "cuda":  # elsewhere there is nothing to wait for
            yield CheckResult(f"{title}, reads back in a step", sum(reads.values()), MAX_READS[title])


def check_processes(device: torch.device) -> Iterator[CheckResult]:
    if torch.cuda.is_available() and (device.type == "cpu" or torch.cuda.device_count() < 2):
        print("two processes: skipped, each needs a GPU of its own where there is one")
        return
    yield from check_two_processes(device)


PARTS: dict[str, Check] = {
    "correctness": check_correctness,
    "speed": measure_speed,
    "reads": check_reads,
    "processes": check_processes,
}


def catch_errors(check: Check, device: torch.device) -> Iterator[CheckResult]:
    """The results of a check; an exception is a failed one, so that the other checks still run."""
    try:
        yield from check(device)
    except (Exception, SystemExit) as error:  # SystemExit: another process has failed, and reported it
        traceback.print_exc()
        name = check.func.__name__ if isinstance(check, partial) else check.__name__
        yield CheckResult(f"{name}: {type(error).__name__}", float("inf"), 0)


def run_part(name: str, device: torch.device) -> list[CheckResult]:
    """Print each result as it comes; returns them all."""
    start, results = time.perf_counter(), []
    for result in catch_errors(PARTS[name], device):
        print(result, flush=True)
        results.append(result)
    print(f"---- {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return results


def report_failures(results: Iterable[CheckResult]) -> int:
    results = [*results]
    failed = [result for result in results if not result.is_kept]
    print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    for result in failed:
        print(f"failed: {result}")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("this machine has no GPU; rehearse the checks with --device cpu", file=sys.stderr)
        return 2
    logging.getLogger("ssql_det").setLevel(logging.ERROR)  # warnings about networks of no known family
    torch.set_num_threads(1)  # the CPU's tensors are small, and on busy cores threads wait for each other
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    return report_failures(result for part in options.only for result in run_part(part, device))


if __name__ == "__main__":
    sys.exit(main())
