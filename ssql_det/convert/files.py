"""Read and write checkpoint files of any known format, completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssql_det.convert.architecture import ARCHITECTURES, NUM_BATCHES_TRACKED, get_architecture
from ssql_det.convert.checkpoint import (
    Checkpoint,
    Coverage,
    SourceFile,
    read_backbone_name,
    resolve_network_name,
    summarize_names,
)
from ssql_det.convert.format import (
    Fit,
    Format,
    Found,
    Writer,
    alone,
    as_tensor,
    best_fit,
    contained,
    find_invalid_values,
    fit,
    is_oversized_view,
    neutral,
)
from ssql_det.convert.formats import FORMATS, under_prefix
from ssql_det.core.errors import UserError, did_you_mean, printable
from ssql_det.core.files import atomic_write, sha256
from ssql_det.core.tensor_files import METADATA, is_safetensors, read_safetensors
from ssql_det.core.unpickler import read_tensors

_FIRST_BLOCKS = ("layer1.0.conv1.weight", "res2.0.conv1.weight", "4.0.conv1.weight")  # of unknown prefixes
_LONGEST = 200  # characters of a prefix in a message


def read_content(path: str | os.PathLike[str]) -> Any:
    """The content of a ``.pth``, ``.pkl``, ``.tar``, ``.bin`` or ``.safetensors`` file, known by its first bytes.

    Of a safetensors file: ``{"model": tensors, "__metadata__": strings}``.
    """
    if is_safetensors(path):
        tensors, strings = read_safetensors(path)
        return {"model": tensors, METADATA: strings}
    return read_tensors(path)


def read_checkpoint(
    path: str | os.PathLike[str],
    format: str | None = None,
    arch: str | None = None,
    branch: str | None = None,
    prefix: str | None = None,
    allow: Sequence[str] = (),
) -> Checkpoint:
    """The backbone in a file, every tensor of it, or an error that says which tensors are the trouble.

    ``format`` and ``arch`` are found out where they are not given. ``branch`` chooses between the trained network
    (``online``) and its moving average (``momentum``) where both are there. ``prefix`` is for a ResNet that stands
    under one that no format knows. ``allow`` has patterns of names that may be left over.

    >>> checkpoint = read_checkpoint("moco_v2_800ep_pretrain.pth.tar")
    >>> checkpoint.source.format, checkpoint.architecture.name
    ('moco', 'resnet50')
    """
    checkpoint = inspect_checkpoint(path, format, arch, branch, prefix)
    checkpoint.coverage.check(os.fspath(path), allow)
    return checkpoint


def inspect_checkpoint(
    path: str | os.PathLike[str],
    format: str | None = None,
    arch: str | None = None,
    branch: str | None = None,
    prefix: str | None = None,
    content: Any = None,
) -> Checkpoint:
    """As :func:`read_checkpoint`, but what is wrong is in ``coverage`` alone: a report, not a refusal.

    ``content`` is what :func:`open_weights` gave, where the file is opened already.
    """
    content = read_content(path) if content is None else content
    if arch is None:
        _require_resnet(content, path)
    found = find_format(content, os.fspath(path), format, branch, prefix)
    state = {name: tensor for name, value in found.state.items() if (tensor := as_tensor(value)) is not None}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    best = fit(get_architecture(arch), found.layout, shapes) if arch else best_fit(found.layout, shapes)
    with translate_metadata_errors(path):
        tensors, coverage, detector = _sorted_out(content, found, state, best)
        metadata = found.format.facts_of(content, found, best.architecture)
    beside = [key for key in content if found.container and key != found.container.split("/")[0]]
    coverage = replace(coverage, beside=tuple(printable(str(key), _LONGEST) for key in beside))
    source = SourceFile(Path(path).name, sha256(path), found.format.name, found.why, found.format.branches_in(content))
    return Checkpoint(best.architecture, tensors, metadata, source, coverage, detector)


def get_writers() -> dict[str, Writer]:
    """The formats that can be written, by name."""
    return {each.name: each.writer for each in FORMATS if each.writer is not None}


def check_output(path: str | os.PathLike[str], format: str, replace: bool = False) -> Writer:
    """Everything about an output that can be refused before a long reading."""
    known = get_writers()
    if format not in known:
        raise UserError(f"cannot write {format!r}{did_you_mean(format, known)} (can write: {', '.join(known)})")
    writer = known[format]
    if Path(path).suffix not in writer.suffixes:
        raise UserError(f"a file of format {format} ends in {' or '.join(writer.suffixes)}; got {path}")
    if Path(path).exists() and not replace:
        raise UserError(f"{path} exists already; choose another name, or say --force to replace it")
    return writer


def write_checkpoint(
    checkpoint: Checkpoint, path: str | os.PathLike[str], format: str, replace: bool = False
) -> Mapping[str, str]:
    """Write the file, whole or not at all; return what the format could not carry, by name and reason.

    >>> write_checkpoint(read_checkpoint("moco_v2.pth.tar"), "moco_v2.pkl", "detectron2")
    {'bn1.num_batches_tracked': 'FrozenBN has no place for it, and none of the norms uses it', ...}
    """
    writer = check_output(path, format, replace)
    with atomic_write(path) as file:
        return writer.write(checkpoint, file)


@contextmanager
def translate_metadata_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """What a file says about itself can be wrong in any way."""
    try:
        yield
    except Exception as failure:
        reason = printable(repr(failure), 200)
        raise UserError(f"{path}: what it says about itself is not understood ({reason}); get it anew") from failure


def _require_resnet(content: Any, path: str | os.PathLike[str]) -> None:
    """A training's file may have any network, and other formats have a form for ResNets alone."""
    with translate_metadata_errors(path):
        name = read_backbone_name(content)
    if name is not None and resolve_network_name(name) not in ARCHITECTURES:
        raise UserError(
            f"{path}: its backbone is {name}, and the formats of Detectron2 and torchvision that are known here are of "
            "ResNets alone; give it to probe, analyze, or pretrain --init"
        )


def find_format(
    content: Any, where: str, name: str | None = None, branch: str | None = None, prefix: str | None = None
) -> Found:
    """Which format a file's content is in, and by which key that is known."""
    candidates: Sequence[Format] = FORMATS
    if name is not None:
        known = {each.name: each for each in FORMATS}
        if name not in known:
            raise UserError(f"there is no format {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
        candidates = [known[name]]
    if prefix is not None:
        candidates = [under_prefix(prefix, candidates[0] if name else None)]
    for candidate in candidates:
        if (found := candidate.find(content, branch)) is not None:
            return found
    if branch is not None and (found := next((f for each in candidates if (f := each.find(content))), None)):
        there = ", ".join(found.format.branches_in(content))
        raise UserError(f"{where}: {found.format.name} has no branch {branch!r} here, only {there}")
    raise UserError(f"{where}: {_why_unknown(content, candidates if name or prefix is not None else ())}")


def _sorted_out(
    content: Any, found: Found, state: Mapping[str, Tensor], best: Fit
) -> tuple[dict[str, Tensor], Coverage, dict[str, Tensor]]:
    """The backbone under neutral names; what became of each name of the state dict; a detector's other tensors."""
    tensors = {neutral(slot): alone(state[name]) for slot, name in best.right.items()}
    for slot in best.architecture.slots:
        if (make := found.layout.computed.get(slot.leaf)) is not None and slot.is_norm and slot not in best.right:
            tensors[neutral(slot)] = make(slot.shape)
    floats = ((name, state[name]) for slot, name in best.right.items() if slot.shape)
    wrong = {**best.wrong, **find_invalid_values(floats)}
    used = [name for name in best.right.values() if name not in wrong]
    placed = {*best.right.values(), *best.wrong}
    leftover = {name: value for name, value in found.state.items() if name not in placed}
    parts = found.format.rest(content, leftover) if found.format.rest else []
    spread = {part.source for part in parts if is_oversized_view(part.tensor)}
    wrong |= dict.fromkeys(spread, "claims more elements than the file has")
    detector = {part.name: alone(part.tensor) for part in parts if part.source not in spread}
    of_detector = {part.source for part in parts}
    wrong |= find_invalid_values(
        (name, tensor) for name, tensor in detector.items() if not name.endswith(NUM_BATCHES_TRACKED)
    )
    left_out, unmatched = {}, []
    for name, value in leftover.items():
        reason = found.format.reason_to_leave(name, found) if as_tensor(value) is not None else "not a tensor"
        if reason is not None:
            left_out[name] = reason
        elif name not in of_detector:
            unmatched.append(name)
    return tensors, Coverage(tuple(used), left_out, tuple(unmatched), best.missing, wrong), detector


def _why_unknown(content: Any, asked: Sequence[Format]) -> str:
    """What to do about a file in which no ResNet is found."""
    if asked:
        format = asked[0]
        first = [layout.first for layouts in format.branches.values() for layout in layouts]
        return f"it is not in the format {format.name} ({' or '.join(first[:3])} is not in it); leave out --from"
    layouts = [layout for each in FORMATS for branch in each.branches.values() for layout in branch]
    containers = dict.fromkeys(name for layout in layouts for name in layout.containers)
    states = [state for name in containers if (state := contained(content, name)) is not None]
    named = (name for state in states for name, value in state.items() if as_tensor(value) is not None)
    names = list(dict.fromkeys(named))
    if not names:
        return "there are no tensors in it under the usual names (state_dict, model, ...); is it a checkpoint?"
    for end in _FIRST_BLOCKS:
        if near := next((name for name in names if name.endswith(f".{end}")), None):
            prefix = printable(near.removesuffix(end), _LONGEST)
            return f"its ResNet is under an unknown prefix; say --prefix {prefix!r}"
    known = ", ".join(each.name for each in FORMATS)
    return f"no ResNet is found in it; its tensors are {summarize_names(names)} (known formats: {known})"
