"""A check of two processes, each with a GPU or, on a machine without one, on the CPU."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from support.devices.comparison import CheckResult, total_relative_error, worst
from support.devices.targets import Target
from support.pretrain.processes import take_steps
from support.small_methods import METHODS

from ssql_det.core.distributed import rank
from ssql_det.core.launch import launch

_LIMIT = 1e-9  # in float64
_EVERY_STEP = [*itertools.product(METHODS, (False, True))]


def check_two_processes(device: torch.device) -> Iterator[CheckResult]:
    """Steps of each method with synchronized norms: two processes compute what one does with the whole batch."""
    with tempfile.TemporaryDirectory() as folder:
        launch(save_steps, Path(folder), device.type, processes=2)
        ranks = [torch.load(Path(folder) / f"{index}.pt", map_location="cpu") for index in (0, 1)]
    for kind, is_ssql in _EVERY_STEP:
        losses, gradients, state = take_steps(kind, is_ssql, target=Target(device))
        (first_losses, *first), (second_losses, *second) = (each[kind, is_ssql] for each in ranks)
        means = [(one + other) / 2 for one, other in zip(first_losses, second_losses, strict=True)]
        errors = [abs(float(mean) - float(loss)) for mean, loss in zip(means, losses, strict=True)]
        for rank_gradients, rank_state in (first, second):
            errors += map(total_relative_error, rank_gradients, gradients)
            errors.append(total_relative_error(rank_state, state))
        title = f"two processes, {kind} {'under SSQL' if is_ssql else 'alone'}"
        yield CheckResult(f"{title}: losses, gradients and state", worst(errors), _LIMIT)


def save_steps(folder: Path, device_type: str) -> None:
    """The steps of this process, on its share of each batch."""
    target = Target(torch.device(device_type))
    results = {(kind, is_ssql): take_steps(kind, is_ssql, target=target) for kind, is_ssql in _EVERY_STEP}
    torch.save(results, folder / f"{rank()}.pt")
