"""Compare the speed of minid2 and Detectron2: ``python benchmarks/engine.py``, where Detectron2 can be imported.

Alternates detection, and a training step, of the reference detectors on a 480x640 image, with each engine in a process
of its own. Exit code 1 if minid2 takes more than 1.05 times Detectron2's time for any of them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import Child, alternate, report, run_script, serve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.minid2 import detectors, modules, structures_and_layers

MODELS = ("R18-C4", "Mask R50-FPN")
SIZE = (480, 640)
LIMIT = 1.05


def prepare(root: str, name: str) -> dict[str, Callable[[], object]]:
    """The functions to time, of a detector with seeded weights: ``detection`` and ``training step``."""

    def engine(package: str) -> Any:
        return importlib.import_module(f"{root}.{package}")

    cfg = detectors.full_config(engine, name, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)
    model = modules.seed_weights(detectors.build(engine, cfg)).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    truth = modules.make_ground_truth(engine, "polygons")[0]
    instances = engine("structures").Instances(SIZE, **truth.get_fields())
    batch = [{"image": structures_and_layers.random_tensor(0, 3, *SIZE).abs() * 100, "instances": instances}]
    storage = engine("utils.events").EventStorage()

    def detect() -> None:
        with torch.no_grad():
            model.eval()(batch)

    def train() -> None:
        torch.manual_seed(0)
        with storage:
            losses = model.train()(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return {"detection": detect, "training step": train}


def serve_engine(root: str, name: str) -> None:
    serve(prepare(root, name))


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each engine (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    arguments = parser.parse_args()
    is_kept = []
    for name in arguments.models:
        detectron2, minid2 = (Child(__file__, root, name) for root in ("detectron2", "ssql_det.minid2"))
        for function in ("detection", "training step"):
            times = alternate(lambda: detectron2.run(function), lambda: minid2.run(function), arguments.rounds)  # noqa: B023
            is_kept.append(report(f"{name}, {function}", *times, limit=LIMIT))
        detectron2.close()
        minid2.close()
    return all(is_kept)


if __name__ == "__main__":
    run_script(main, serve_engine)
