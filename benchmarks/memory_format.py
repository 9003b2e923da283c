"""Is channels last faster than contiguous? ``python benchmarks/memory_format.py [--device cuda]``

Alternates training steps in both memory formats: SimSiam and SSQL with several backbones, and the detectors of minid2
on a 480x640 image. ``MEMORY_FORMAT auto`` is channels last on the CPU because of these results; a ratio above 1 there
gives exit code 1.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator

import engine
import torch
from ssql_step import Step
from support.minid2 import modules
from timing import alternate, report

BACKBONES = (("narrow_resnet", 32, 64), ("resnet18", 64, 32), ("resnet50", 128, 16), ("mobilenet_v2", 64, 32))
FORMATS = (torch.contiguous_format, torch.channels_last)
LIMIT = 1.0


def make_pretraining_steps(device: str) -> Iterator[tuple[str, list[Callable[[], object]]]]:
    for arch, side, images in BACKBONES:
        for is_ssql in (False, True):
            settings = ("simsiam", is_ssql, arch, side, 512, images, device)
            name = f"{'SSQL' if is_ssql else 'SimSiam'}, {arch}, {images} images of {side} pixels"
            yield name, [Step(*settings, memory_format) for memory_format in FORMATS]


def make_detector_steps() -> Iterator[tuple[str, list[Callable[[], object]]]]:
    seed_weights = modules.seed_weights
    for name in engine.MODELS:
        steps = []
        for memory_format in FORMATS:
            modules.seed_weights = lambda model, stored=memory_format: seed_weights(model).to(memory_format=stored)
            steps.append(engine.prepare("ssql_det.minid2", name)["training step"])
        modules.seed_weights = seed_weights
        yield f"training step of {name}", steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the backbones (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = make_pretraining_steps(options.device)
    if options.device == "cpu":
        cases = itertools.chain(cases, make_detector_steps())
    is_kept = []
    for name, steps in cases:
        is_kept.append(report(f"{name}: channels last / contiguous", *alternate(*steps, options.rounds), LIMIT))
    raise SystemExit(not all(is_kept))


if __name__ == "__main__":
    main()
