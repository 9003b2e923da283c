"""One file of a run: the backbone for everybody, its heads, and what a resumed run needs; whole or absent. And a
pretrained network from a file: the backbone of any, and the heads where this project trained them.

It is the project's own layout (``ssql_det.convert.formats.own``): probes take it, and of a ResNet detectors and
``ssql-det convert``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ssql_det.backbones import (
    NOT_A_TENSOR,
    Backbone,
    build_backbone,
    describe_expected_state,
    describe_state_dict,
    find_state_differences,
)
from ssql_det.convert import Metadata, SourceFile, inspect_checkpoint, load_backbone, read_content
from ssql_det.convert.architecture import NUM_BATCHES_TRACKED
from ssql_det.convert.checkpoint import (
    BRANCHES,
    METADATA_KEY,
    build_metadata_dict,
    read_backbone_name,
    resolve_network_name,
    summarize_names,
)
from ssql_det.convert.files import translate_metadata_errors
from ssql_det.convert.format import as_tensor, find_invalid_values, is_oversized_view
from ssql_det.core.distributed import is_main
from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import atomic_write, sha256
from ssql_det.core.optimizer_state import load_optimizer_state
from ssql_det.core.rng import gather_rng_states, restore_rng_state
from ssql_det.core.tensor_files import save_tensors
from ssql_det.core.unpickler import read_tensors
from ssql_det.ssl.method import Encoder, mlp_from_state_dict

CHECKPOINT_NAME = "checkpoint.pth"
_BRANCHES = {"online": "encoder.backbone.", "momentum": "momentum.network.backbone."}  # not every method has both
_PROJECTOR, _PREDICTOR, _TARGET = "encoder.projector.", "predictor.", "momentum.network.projector."


@dataclass(frozen=True)
class TrainingState:
    """What is trained, under the names that a checkpoint gives it.

    >>> run = TrainingState(method, "resnet18", optimizer, facts)
    >>> run.save(folder, steps=500)
    >>> TrainingState(method, "resnet18", optimizer, facts).resume(folder, total=1000)
    500
    """

    method: nn.Module
    backbone: str  # the name of its builder
    optimizer: torch.optim.Optimizer
    facts: Metadata
    images: str = ""  # what it is trained on, by its identity
    quantizers: nn.Module | None = None  # what they learn, where they learn

    def save(self, folder: Path, steps: int) -> Path:
        """After so many steps. Every rank takes part, one writes."""
        path = folder / CHECKPOINT_NAME
        generators = gather_rng_states()
        if is_main():
            with atomic_write(path) as file:
                save_tensors(self._content(steps, generators), file)
        return path

    def resume(self, folder: Path, total: int) -> int:
        """Take up the state in the folder; how many of the steps are behind it."""
        path = folder / CHECKPOINT_NAME
        content = read_tensors(path)
        try:
            generators, steps = list(content["resume"]["rng"]), int(content["resume"]["steps"])
            if (name := read_backbone_name(content)) not in (None, self.backbone):
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
            load_optimizer_state(self.optimizer, content["resume"]["optimizer"])
            restore_rng_state(generators)
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
        description = build_metadata_dict(self.backbone, self.facts)
        return {METADATA_KEY: description, **branches, "heads": heads, **learned, "resume": resume}


def is_in(folder: str | os.PathLike[str]) -> bool:
    return (Path(folder) / CHECKPOINT_NAME).exists()


def require_savable(backbone: Backbone) -> None:
    """Refuse, before any work, a network that could not be read again from its checkpoint."""
    state = describe_state_dict(backbone.module.state_dict())
    parts = backbone.module.named_modules()
    faults = [f"{path or 'the network'} is parametrized" for path, module in parts if is_parametrized(module)]
    faults += [f"{name} is {kind}" for name, kind in state.items() if kind == NOT_A_TENSOR]
    if faults := faults or find_state_differences(state, describe_expected_state(backbone.name)):
        raise UserError(
            f"a checkpoint of {backbone.name} could not be read again: {summarize_names(faults)}; its builder has to "
            "make a network of plain parameters and buffers, the same each time"
        )


@dataclass(frozen=True, eq=False)
class PretrainedBackbone:
    """A backbone with its weights, and what is known about it.

    >>> pretrained = read_backbone("runs/ssql/checkpoint.pth")
    >>> pretrained.network, pretrained.facts.method
    ('resnet18', 'SSQL')
    """

    backbone: Backbone
    facts: Metadata
    source: SourceFile

    @property
    def network(self) -> str:
        """Its name in rows: a ResNet's architecture, whoever builds it, and of another network the builder's name."""
        return resolve_network_name(self.backbone.name)


@dataclass(frozen=True, eq=False)
class PretrainedMethod:
    """``predictor(encoder(view))`` is what was held against ``target(other view)``, which is the encoder itself or its
    moving average. Without heads, projector and predictor change nothing.

    >>> trained = read_pretrained_method("runs/ssql/checkpoint.pth")
    >>> trained.has_heads, trained.pretrained.facts.method
    (True, 'SSQL')
    """

    pretrained: PretrainedBackbone
    encoder: Encoder
    predictor: nn.Module
    target: Encoder
    has_heads: bool


def read_backbone(path: str | os.PathLike[str], into: Backbone | None = None) -> PretrainedBackbone:
    """The backbone in a file: any that a training of this project wrote, a ResNet in any format that convert reads.

    It is built by the name in the file, or its weights go ``into`` one that is there; all of them, or it is refused.
    """
    path = os.path.expanduser(path)
    return _backbone_in(read_content(path), path, into=into)


def read_pretrained_method(path: str | os.PathLike[str]) -> PretrainedMethod:
    """All of a file that a network's features pass through, in evaluation mode; of foreign files the backbone."""
    path = os.path.expanduser(path)
    content = read_content(path)
    pretrained = _backbone_in(content, path)
    backbone = pretrained.backbone.module
    heads = content.get("heads", {}) if METADATA_KEY in content else {}
    if not heads:
        encoder = Encoder(backbone, nn.Identity()).eval()
        return PretrainedMethod(pretrained, encoder, nn.Identity(), encoder, has_heads=False)
    try:
        encoder = target = Encoder(backbone, mlp_from_state_dict(_below(_PROJECTOR, heads))).eval()
        predictor = mlp_from_state_dict(found).eval() if (found := _below(_PREDICTOR, heads)) else nn.Identity()
        average = _below(_TARGET, heads)
        if average:
            target = Encoder(
                _backbone_in(content, path, "momentum").backbone.module, mlp_from_state_dict(average)
            ).eval()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as failure:
        reason = printable(" ".join(str(failure).split()), 200)
        raise UserError(f"{path}: its projector and predictor are not understood ({reason}); get it anew") from failure
    return PretrainedMethod(pretrained, encoder, predictor, target, has_heads=True)


def _backbone_in(
    content: Any, path: str, branch: str | None = None, into: Backbone | None = None
) -> PretrainedBackbone:
    with translate_metadata_errors(path):
        name = read_backbone_name(content)
    if name is not None:
        return _of_training(content, path, name, branch or "online", into)
    checkpoint = inspect_checkpoint(path, branch=branch, content=content)
    checkpoint.coverage.check(path)
    backbone = into or build_backbone(checkpoint.architecture.name)
    load_backbone(backbone.module, checkpoint)
    assert checkpoint.source is not None
    return PretrainedBackbone(backbone, checkpoint.metadata, checkpoint.source)


def _of_training(content: Any, path: str, name: str, branch: str, into: Backbone | None) -> PretrainedBackbone:
    """A network in its own names: what its builder makes is to have just these tensors."""
    with translate_metadata_errors(path):
        facts = replace(Metadata.from_dict(content[METADATA_KEY]), branch=branch)
        state = {key: as_tensor(value) for key, value in content[branch].items()}
    if into and resolve_network_name(into.name) != resolve_network_name(name):
        raise UserError(f"{path} is of the backbone {name}, not {into.name}; train that one: BACKBONE {name}")
    try:
        wanted = describe_state_dict(into.module.state_dict()) if into else describe_expected_state(name)
    except UserError as failure:
        raise UserError(f"{path}: {failure}") from failure
    wrong = find_state_differences(describe_state_dict(state), wanted)
    tensors = {key: tensor for key, tensor in state.items() if tensor is not None}
    wrong += [f"{key} claims more elements than the file has" for key in tensors if is_oversized_view(tensors[key])]
    floats = (each for each in tensors.items() if each[1].is_floating_point())
    if wrong := wrong or [f"{key} {fault}" for key, fault in find_invalid_values(floats).items()]:
        raise UserError(
            f"{path} is no {name} as it is built here: {summarize_names(wrong)}; is it whole, and of this version?"
        )
    backbone = into or build_backbone(name)
    backbone.module.load_state_dict(tensors)
    there = tuple(each for each in BRANCHES if each in content)
    return PretrainedBackbone(backbone, facts, SourceFile(Path(path).name, sha256(path), METADATA_KEY, branches=there))


def _below(prefix: str, heads: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one head under their names in it, fit to be computed with."""
    found = {}
    for name, value in heads.items():
        if name.startswith(prefix):
            tensor = as_tensor(value)
            if tensor is None or is_oversized_view(tensor):
                raise ValueError(f"{name} is no tensor, or claims more elements than the file has")
            found[name.removeprefix(prefix)] = tensor
    for name, fault in find_invalid_values(
        each for each in found.items() if not each[0].endswith(NUM_BATCHES_TRACKED)
    ).items():
        raise ValueError(f"{prefix}{name} {fault}")
    return found
