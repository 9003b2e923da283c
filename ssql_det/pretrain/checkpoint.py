"""The checkpoint of a pretraining: saving, resuming, and reading as a pretrained network.

One file holds the backbone, the heads of the method and the training state. Its format is this project's
(``ssql_det.convert.formats.ssql_det``); probes, detectors and ``ssql-det convert`` read it. :func:`read_backbone` also
reads backbones in every other format that ``ssql-det convert`` reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from ssql_det.convert.checkpoint import check_state, find_invalid_values, summarize_names
from ssql_det.convert.format import as_tensor, is_oversized_view
from ssql_det.convert.metadata import (
    BRANCHES,
    METADATA_KEY,
    build_metadata_dict,
    read_backbone_name,
    resolve_network_name,
    translate_metadata_errors,
)
from ssql_det.core.distributed import is_main
from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import atomic_write, sha256
from ssql_det.core.optimizer_state import STATE_ERRORS, load_optimizer_state
from ssql_det.core.rng import gather_rng_states, restore_rng_state
from ssql_det.core.rows import Calibration
from ssql_det.core.tensor_files import save_tensors
from ssql_det.core.unpickler import read_tensors
from ssql_det.quant.training import QUANTIZATION_NAME, QuantizerTraining
from ssql_det.ssl.method import Encoder, mlp_from_state_dict

CHECKPOINT_NAME = "checkpoint.pth"
_BRANCH_PREFIXES = {
    "online": "encoder.backbone.",
    "momentum": "momentum.network.backbone.",
}  # prefixes in the method's state dict
# Prefixes of the heads.
_PROJECTOR, _PREDICTOR, _TARGET_PROJECTOR = "encoder.projector.", "predictor.", "momentum.network.projector."


@dataclass(frozen=True)
class TrainingState:
    """Everything except the step number that a checkpoint saves and a resumed run restores.

    >>> import tempfile
    >>> from ssql_det.backbones import build_backbone
    >>> from ssql_det.ssl import SimSiam
    >>> method = SimSiam(build_backbone("narrow_resnet"), dim=16, hidden=8)
    >>> optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    >>> state = TrainingState(method, "narrow_resnet", optimizer, Metadata(None, None))
    >>> folder = Path(tempfile.mkdtemp())
    >>> state.save(folder, steps=500).name, state.resume(folder, total_steps=1000)
    ('checkpoint.pth', 500)
    """

    method: nn.Module
    backbone_name: str
    optimizer: torch.optim.Optimizer
    metadata: Metadata
    data_hash: str = ""  # of the file names of the training images
    quantizers: QuantizerTraining | None = None  # of SSQL
    started_on: Calibration = field(default_factory=Calibration)  # the images that trained quantizers started from

    def save(self, folder: Path, steps: int) -> Path:
        """Save the state after ``steps`` steps, and the backbone's quantization if its quantizers are trained.

        Every process must call this; rank 0 writes the files.
        """
        path = folder / CHECKPOINT_NAME
        rng_states = gather_rng_states()
        if is_main():
            if self.quantizers is not None and self.quantizers.parameters:
                self.quantizers.save(folder / QUANTIZATION_NAME, self.started_on, inside="backbone")
            with atomic_write(path) as file:
                save_tensors(self._build_content(steps, rng_states), file)
        return path

    def resume(self, folder: Path, total_steps: int) -> int:
        """Restore the state from the checkpoint in a folder, and return the number of completed steps."""
        path = folder / CHECKPOINT_NAME
        content = read_tensors(path)
        try:
            rng_states, steps = list(content["resume"]["rng"]), content["resume"]["steps"]
            if (name := read_backbone_name(content)) not in (None, self.backbone_name):
                raise ValueError(f"its backbone is {name}, not {self.backbone_name}")
            if content["resume"]["images"] != self.data_hash:
                raise ValueError("the training images have changed")
            if type(steps) is not int or not 0 <= steps <= total_steps:
                raise ValueError(f"it is at step {steps} of {total_steps}")
            state = dict(content["heads"])
            for branch, prefix in self._find_branches().items():
                state |= {prefix + name: tensor for name, tensor in content[branch].items()}
            check_state(state)
            self.method.load_state_dict(state)
            if self.quantizers is not None and self.quantizers.parameters:
                self.quantizers.load_state_dict(content["quantizers"])
            load_optimizer_state(self.optimizer, content["resume"]["optimizer"])
            restore_rng_state(rng_states)
        except KeyError as error:
            raise UserError(f"{path} cannot be resumed from: it has no {error.args[0]}") from error
        except STATE_ERRORS as error:
            reason = printable(" ".join(str(error).split()), 200)
            raise UserError(f"{path} cannot be resumed from: {reason}; pretrain in another OUTPUT_DIR") from error
        return steps

    def _find_branches(self) -> dict[str, str]:
        """The branches that the method has (online, momentum), each with its prefix in the method's state dict."""
        names = list(self.method.state_dict())
        return {
            branch: prefix
            for branch, prefix in _BRANCH_PREFIXES.items()
            if any(name.startswith(prefix) for name in names)
        }

    def _build_content(self, steps: int, rng_states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        heads = self.method.state_dict()  # with the branches, which the next statement takes out
        branches = {
            branch: {name.removeprefix(prefix): heads.pop(name) for name in list(heads) if name.startswith(prefix)}
            for branch, prefix in self._find_branches().items()
        }
        resume = {
            "steps": steps,
            "images": self.data_hash,
            "optimizer": self.optimizer.state_dict(),
            "rng": list(rng_states),
        }
        state = self.quantizers.state_dict() if self.quantizers is not None else {}
        quantizers = {"quantizers": state} if state else {}
        metadata = build_metadata_dict(self.backbone_name, self.metadata)
        return {METADATA_KEY: metadata, **branches, "heads": heads, **quantizers, "resume": resume}


def require_savable(backbone: Backbone) -> None:
    """Raise a ``UserError`` before training if the backbone could not be rebuilt from its checkpoint."""
    state = describe_state_dict(backbone.module.state_dict())
    modules = backbone.module.named_modules()
    problems = [f"{path or 'the network'} is parametrized" for path, module in modules if is_parametrized(module)]
    problems += [f"{name} is {entry}" for name, entry in state.items() if entry == NOT_A_TENSOR]
    if problems := problems or find_state_differences(state, describe_expected_state(backbone.name)):
        raise UserError(
            f"a checkpoint of {backbone.name} could not be loaded: {summarize_names(problems)}; the backbone's builder "
            "must return a network of plain parameters and buffers, the same in each call"
        )


@dataclass(frozen=True, eq=False)
class PretrainedBackbone:
    """A backbone with its weights and metadata."""

    backbone: Backbone
    metadata: Metadata
    source: SourceFile

    @property
    def network(self) -> str:
        """The backbone's name in rows of results: a ResNet's architecture, otherwise the name of the builder."""
        return resolve_network_name(self.backbone.name)


@dataclass(frozen=True, eq=False)
class PretrainedMethod:
    """A pretrained network with its heads: the loss compares ``predictor(encoder(view))`` with ``target(other_view)``.

    ``target`` is the encoder itself or the encoder's moving average.
    """

    pretrained: PretrainedBackbone
    encoder: Encoder
    predictor: nn.Module
    target: Encoder
    has_heads: bool  # whether the checkpoint has weights of heads; False: projector and predictor are identities


def read_backbone(path: str | os.PathLike[str], into: Backbone | None = None) -> PretrainedBackbone:
    """Read a backbone from a checkpoint of this project, or a ResNet from any format that ``ssql-det convert`` reads.

    The backbone is built by the name in the file, or the weights are loaded ``into`` a given one. All weights must
    match.
    """
    path = os.path.expanduser(path)
    return _load_backbone(read_content(path), path, into=into)


def read_pretrained_method(path: str | os.PathLike[str]) -> PretrainedMethod:
    """Read a backbone and its heads, in evaluation mode. Heads are read only from checkpoints of this project."""
    path = os.path.expanduser(path)
    content = read_content(path)
    pretrained = _load_backbone(content, path)
    backbone = pretrained.backbone.module
    heads = content.get("heads", {}) if METADATA_KEY in content else {}
    if not heads:
        encoder = Encoder(backbone, nn.Identity()).eval()
        return PretrainedMethod(pretrained, encoder, nn.Identity(), encoder, has_heads=False)
    try:
        encoder = target = Encoder(backbone, mlp_from_state_dict(_read_head(_PROJECTOR, heads))).eval()
        predictor_state = _read_head(_PREDICTOR, heads)
        predictor = mlp_from_state_dict(predictor_state).eval() if predictor_state else nn.Identity()
        target_projector = _read_head(_TARGET_PROJECTOR, heads)
        if target_projector:
            target_backbone = _load_backbone(content, path, "momentum").backbone.module
            target = Encoder(target_backbone, mlp_from_state_dict(target_projector)).eval()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise UserError(
            f"{path}: invalid projector or predictor ({reason}); copy the file again, or pretrain again"
        ) from error
    return PretrainedMethod(pretrained, encoder, predictor, target, has_heads=True)


def _load_backbone(
    content: Any, path: str, branch: str | None = None, into: Backbone | None = None
) -> PretrainedBackbone:
    with translate_metadata_errors(path):
        name = read_backbone_name(content)
    if name is not None:
        return _load_native_backbone(content, path, name, branch or "online", into)
    checkpoint = inspect_checkpoint(path, branch=branch, content=content)
    checkpoint.coverage.check(path)
    backbone = into or build_backbone(checkpoint.architecture.name)
    load_backbone(backbone.module, checkpoint)
    assert checkpoint.source is not None
    return PretrainedBackbone(backbone, checkpoint.metadata, checkpoint.source)


def _load_native_backbone(content: Any, path: str, name: str, branch: str, into: Backbone | None) -> PretrainedBackbone:
    """Load a backbone from a checkpoint of this project, whose tensor names are those of the backbone's modules."""
    with translate_metadata_errors(path):
        metadata = replace(Metadata.from_dict(content[METADATA_KEY]), branch=branch)
        state = {key: as_tensor(value) for key, value in content[branch].items()}
    if into and resolve_network_name(into.name) != resolve_network_name(name):
        raise UserError(f"{path} has the backbone {name}, not {into.name}; set BACKBONE {name}")
    try:
        expected = describe_state_dict(into.module.state_dict()) if into else describe_expected_state(name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    problems = find_state_differences(describe_state_dict(state), expected)
    tensors = {key: tensor for key, tensor in state.items() if tensor is not None}
    problems += [f"{key} claims more elements than the file has" for key in tensors if is_oversized_view(tensors[key])]
    floats = (item for item in tensors.items() if item[1].is_floating_point())
    if problems := problems or [f"{key} {problem}" for key, problem in find_invalid_values(floats).items()]:
        raise UserError(
            f"{path} does not fit the backbone {name} of this version: {summarize_names(problems)}; the file may be "
            "damaged, or from another version"
        )
    backbone = into or build_backbone(name)
    backbone.module.load_state_dict(tensors)
    branches = tuple(branch for branch in BRANCHES if branch in content)
    source = SourceFile(Path(path).name, sha256(path), METADATA_KEY, branches=branches)
    return PretrainedBackbone(backbone, metadata, source)


def _read_head(prefix: str, heads: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one head, under their names without the head's prefix. Raises a ``ValueError`` for invalid
    ones."""
    tensors = {}
    for name, value in heads.items():
        if name.startswith(prefix):
            tensor = as_tensor(value)
            if tensor is None or is_oversized_view(tensor):
                raise ValueError(f"{name} is not a tensor, or claims more elements than the file has")
            tensors[name.removeprefix(prefix)] = tensor
    values = (item for item in tensors.items() if not item[0].endswith(NUM_BATCHES_TRACKED))
    for name, problem in find_invalid_values(values).items():
        raise ValueError(f"{prefix}{name} {problem}")
    return tensors
