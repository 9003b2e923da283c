"""Ask an engine: each scenario takes the engine's sub-packages and gives named arrays.

As a program, so that each engine has a process of its own (in ``tests``)::

    python -m support.minid2.ask detectron2 answers.npz [--live]

``--live`` adds what is too large to be recorded.
"""

import importlib
import sys

import numpy as np
import torch
from support.minid2 import detectors, judging, learning, loading, modules, parts, training

# Of each kind of question, how far answers may differ, as a share of a tensor's largest magnitude.
TOLERANCES = {
    **dict.fromkeys((parts, modules, detectors, training), 1e-5),
    **dict.fromkeys((loading, judging, learning), 1e-12),
}
RECORDED = {scenario: tolerance for module, tolerance in TOLERANCES.items() for scenario in module.SCENARIOS}
LIVE_ONLY = {
    scenario: tolerance for module, tolerance in TOLERANCES.items() for scenario in getattr(module, "LIVE_ONLY", ())
}


def kept(value):
    """As an array; of thousands of doubles the first seven digits."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 and array.size > 1000 else array


def ask(root, scenarios=tuple(RECORDED)):
    """All answers of the engine whose package is ``root``, as arrays by ``scenario/name``."""

    def engine(package):
        return importlib.import_module(f"{root}.{package}")

    return {
        f"{scenario.__name__}/{name}": kept(value.detach() if isinstance(value, torch.Tensor) else value)
        for scenario in scenarios
        for name, value in scenario(engine).items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, path, *live = sys.argv[1:]
    np.savez_compressed(path, **ask(root, (*RECORDED, *LIVE_ONLY) if live else tuple(RECORDED)))
