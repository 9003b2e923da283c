"""One file of a run: the backbone for everybody, its heads, and what a resumed run needs; whole or absent.

It is the project's own layout (``ssql_det.convert.formats.own``): probes take it, and of a ResNet detectors and
``ssql-det convert``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ssql_det.backbones import NO_TENSOR, Backbone, differences, expected_state, state_of
from ssql_det.convert import Facts
from ssql_det.convert.checkpoint import KEY, backbone_named, describe_network, some
from ssql_det.core.choices import every_ranks_state, restore_own_state
from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import atomic_write
from ssql_det.core.optimizers import take_up
from ssql_det.core.ranks import is_main
from ssql_det.core.reader import read_tensors
from ssql_det.core.saving import save_tensors

NAME = "checkpoint.pth"
_BRANCHES = {"online": "encoder.backbone.", "momentum": "momentum.network.backbone."}  # not every method has both


@dataclass(frozen=True)
class Run:
    """What is trained, under the names that a checkpoint gives it.

    >>> run = Run(method, "resnet18", optimizer, facts)
    >>> run.save(folder, steps=500)
    >>> Run(method, "resnet18", optimizer, facts).resume(folder, total=1000)
    500
    """

    method: nn.Module
    backbone: str  # the name of its builder
    optimizer: torch.optim.Optimizer
    facts: Facts
    images: str = ""  # what it is trained on, by its identity
    quantizers: nn.Module | None = None  # what they learn, where they learn

    def save(self, folder: Path, steps: int) -> Path:
        """After so many steps. Every rank takes part, one writes."""
        path = folder / NAME
        generators = every_ranks_state()
        if is_main():
            with atomic_write(path) as file:
                save_tensors(self._content(steps, generators), file)
        return path

    def resume(self, folder: Path, total: int) -> int:
        """Take up the state in the folder; how many of the steps are behind it."""
        path = folder / NAME
        content = read_tensors(path)
        try:
            generators, steps = list(content["resume"]["rng"]), int(content["resume"]["steps"])
            if (name := backbone_named(content)) not in (None, self.backbone):
                raise ValueError(f"its backbone is {name}, and not {self.backbone}")
            if content["resume"]["images"] != self.images:
                raise ValueError("the images are not those that it began with")
            if not 0 <= steps <= total:
                raise ValueError(f"it is {steps} steps on, of {total}")
            state = dict(content["heads"])
            for branch, prefix in self._branches().items():
                state |= {prefix + name: tensor for name, tensor in content[branch].items()}
            self.method.load_state_dict(state)
            if self._learned:
                self._learned.load_state_dict(content["quantizers"])
            take_up(self.optimizer, content["resume"]["optimizer"])
            restore_own_state(generators)
        except KeyError as failure:
            raise UserError(f"{path} cannot be resumed from: it has no {failure.args[0]}") from failure
        except (AttributeError, RuntimeError, TypeError, ValueError) as failure:
            reason = printable(" ".join(str(failure).split()), 200)
            raise UserError(f"{path} cannot be resumed from ({reason}); pretrain in another OUTPUT_DIR") from failure
        return steps

    @property
    def _learned(self) -> nn.Module | None:
        return self.quantizers if self.quantizers is not None and self.quantizers.state_dict() else None

    def _branches(self) -> dict[str, str]:
        """Those that the method has, and what their names begin with in it."""
        names = list(self.method.state_dict())
        return {
            branch: prefix for branch, prefix in _BRANCHES.items() if any(name.startswith(prefix) for name in names)
        }

    def _content(self, steps: int, generators: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        heads = self.method.state_dict()
        branches = {
            branch: {name.removeprefix(prefix): heads.pop(name) for name in list(heads) if name.startswith(prefix)}
            for branch, prefix in self._branches().items()
        }
        resume = {
            "steps": steps,
            "images": self.images,
            "optimizer": self.optimizer.state_dict(),
            "rng": list(generators),
        }
        learned = {"quantizers": self._learned.state_dict()} if self._learned else {}
        description = describe_network(self.backbone, self.facts)
        return {KEY: description, **branches, "heads": heads, **learned, "resume": resume}


def is_in(folder: str | os.PathLike[str]) -> bool:
    return (Path(folder) / NAME).exists()


def require_savable(backbone: Backbone) -> None:
    """Refuse, before any work, a network that could not be read again from its checkpoint."""
    state = state_of(backbone.module.state_dict())
    parts = backbone.module.named_modules()
    faults = [f"{path or 'the network'} is parametrized" for path, module in parts if is_parametrized(module)]
    faults += [f"{name} is {kind}" for name, kind in state.items() if kind == NO_TENSOR]
    if faults := faults or differences(state, expected_state(backbone.name)):
        raise UserError(
            f"a checkpoint of {backbone.name} could not be read again: {some(faults)}; its builder has to make a "
            "network of plain parameters and buffers, the same each time"
        )
