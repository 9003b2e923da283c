"""Compute the answers of an engine, minid2 or Detectron2: the named arrays that it gives in each scenario.

A scenario is a function that imports the engine's sub-packages with its argument and returns arrays by name. As a
program, so that each engine has a process of its own (in ``tests``)::

    python -m support.minid2.record_answers detectron2 answers.npz [--live]

``--live`` adds the scenarios whose answers are not recorded: too large, or different on another machine.
"""

import importlib
import sys

import numpy as np
import torch
from support.minid2 import (
    detectors,
    evaluation,
    loading,
    modules,
    solver_and_checkpoints,
    structures_and_layers,
    training,
)

# How far the answers of a module's scenarios may differ between engines, as a share of an array's largest magnitude
TOLERANCES = {
    **dict.fromkeys((structures_and_layers, modules, detectors, training), 1e-5),
    **dict.fromkeys((loading, evaluation, solver_and_checkpoints), 1e-12),
}
RECORDED = {scenario: tolerance for module, tolerance in TOLERANCES.items() for scenario in module.SCENARIOS}
LIVE_ONLY = {
    scenario: tolerance for module, tolerance in TOLERANCES.items() for scenario in getattr(module, "LIVE_ONLY", ())
}


def to_array(value):
    """An array to be stored; in float32 if it has more than a thousand float64 values."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 and array.size > 1000 else array


def compute_answers(root, scenarios=tuple(RECORDED)):
    """All answers of the engine whose package is ``root``, as arrays by ``scenario/name``."""

    def engine(package):
        return importlib.import_module(f"{root}.{package}")

    return {
        f"{scenario.__name__}/{name}": to_array(value.detach() if isinstance(value, torch.Tensor) else value)
        for scenario in scenarios
        for name, value in scenario(engine).items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, path, *live = sys.argv[1:]
    np.savez_compressed(path, **compute_answers(root, (*RECORDED, *LIVE_ONLY) if live else tuple(RECORDED)))
