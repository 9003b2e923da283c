"""Read and write checkpoint files of any known format: every tensor exactly, or an error that says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssql_det.convert.architecture import ARCHITECTURES, NUM_BATCHES_TRACKED, get_architecture
from ssql_det.convert.checkpoint import Checkpoint, Coverage, SourceFile, find_invalid_values, summarize_names
from ssql_det.convert.format import (
    ArchitectureMatch,
    Format,
    FormatMatch,
    Writer,
    as_tensor,
    compact,
    find_architecture,
    get_state_dict,
    is_oversized_view,
    match_architecture,
    torchvision_name,
)
from ssql_det.convert.formats import FORMATS, make_prefixed_format
from ssql_det.convert.metadata import read_backbone_name, resolve_network_name, translate_metadata_errors
from ssql_det.core.errors import UserError, did_you_mean, printable
from ssql_det.core.files import atomic_write, sha256
from ssql_det.core.tensor_files import METADATA, is_safetensors, read_safetensors
from ssql_det.core.unpickler import read_tensors

_STAGE_STARTS = ("layer1.0.conv1.weight", "res2.0.conv1.weight", "4.0.conv1.weight")  # by which a prefix is found
_MAX_PREFIX_LENGTH = 200  # in a message


def read_content(path: str | os.PathLike[str]) -> Any:
    """The content of a ``.pth``, ``.pkl``, ``.tar``, ``.bin`` or ``.safetensors`` file, whatever its suffix says.

    A safetensors file gives ``{"model": tensors, "__metadata__": strings}``.
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
    """The backbone in a file, every tensor of it, or an error that names the tensors at fault.

    ``format`` and ``arch`` are found by the names and shapes of the tensors unless they are given. ``branch`` chooses
    between the trained network (``online``) and its moving average (``momentum``) where the file has both. ``prefix``
    is for a ResNet under a prefix that no format has. ``allow`` has patterns of unexpected names to leave out.

    >>> torch.save({f"encoder_q.{name}": tensor for name, tensor in model.state_dict().items()}, "moco.pth")
    >>> checkpoint = read_checkpoint("moco.pth")
    >>> checkpoint.source.format, checkpoint.architecture.name
    ('moco', 'narrow_resnet')
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
    """As :func:`read_checkpoint`, but missing, invalid and unexpected tensors are reported in ``coverage`` only.

    ``content`` is what :func:`read_content` gave, if the file has been read already.
    """
    content = read_content(path) if content is None else content
    if arch is None:
        _check_is_resnet(content, path)
    format_match = match_format(content, os.fspath(path), format, branch, prefix)
    state = {name: tensor for name, value in format_match.state.items() if (tensor := as_tensor(value)) is not None}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if arch is None:
        best = find_architecture(format_match.layout, shapes)
    else:
        best = match_architecture(get_architecture(arch), format_match.layout, shapes)
    with translate_metadata_errors(path):
        tensors, coverage, detector = _sort_tensors(content, format_match, state, best)
        metadata = format_match.format.get_metadata(content, format_match, best.architecture)
    container = format_match.container.split("/")[0]
    not_read = [key for key in content if container and key != container]
    coverage = replace(coverage, not_read=tuple(printable(str(key), _MAX_PREFIX_LENGTH) for key in not_read))
    branches = format_match.format.list_branches(content)
    source = SourceFile(Path(path).name, sha256(path), format_match.format.name, format_match.reason, branches)
    return Checkpoint(best.architecture, tensors, metadata, source, coverage, detector)


def get_writers() -> dict[str, Writer]:
    """The writers of the formats that can be written, by the format's name."""
    return {format.name: format.writer for format in FORMATS if format.writer is not None}


def check_output(path: str | os.PathLike[str], format: str, replace: bool = False) -> Writer:
    """The writer of a format, if it can write this path; to be called before a long read."""
    writers = get_writers()
    if format not in writers:
        raise UserError(f"cannot write {format!r}{did_you_mean(format, writers)} (can write: {', '.join(writers)})")
    writer = writers[format]
    if Path(path).suffix not in writer.suffixes:
        raise UserError(f"a file of format {format} ends in {' or '.join(writer.suffixes)}; got {path}")
    if Path(path).exists() and not replace:
        raise UserError(f"{path} exists already; choose another name, or pass --force to replace it")
    return writer


def write_checkpoint(
    checkpoint: Checkpoint, path: str | os.PathLike[str], format: str, replace: bool = False
) -> Mapping[str, str]:
    """Write the file atomically; return the tensors that the format cannot hold, with the reason of each.

    >>> from ssql_det.convert import get_architecture
    >>> checkpoint = Checkpoint(get_architecture("narrow_resnet"), model.state_dict())
    >>> write_checkpoint(checkpoint, "x.pkl", "detectron2")
    {'bn1.num_batches_tracked': "Detectron2's FrozenBatchNorm2d has no such buffer", ...}
    """
    writer = check_output(path, format, replace)
    with atomic_write(path) as file:
        return writer.write(checkpoint, file)


def _check_is_resnet(content: Any, path: str | os.PathLike[str]) -> None:
    """Checkpoints of ``pretrain`` may have any network, but formats are of ResNets."""
    with translate_metadata_errors(path):
        name = read_backbone_name(content)
    if name is not None and resolve_network_name(name) not in ARCHITECTURES:
        raise UserError(
            f"{path}: its backbone is {name}, and only ResNets can be converted; "
            "use the file as it is in probe, analyze or pretrain --init"
        )


def match_format(
    content: Any, path: str, name: str | None = None, branch: str | None = None, prefix: str | None = None
) -> FormatMatch:
    """The first format that the content of a file matches."""
    candidates: Sequence[Format] = FORMATS
    if name is not None:
        known = {format.name: format for format in FORMATS}
        if name not in known:
            raise UserError(f"there is no format {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
        candidates = [known[name]]
    if prefix is not None:
        candidates = [make_prefixed_format(prefix, candidates[0] if name else None)]
    for format in candidates:
        if (match := format.match(content, branch)) is not None:
            return match
    if branch is not None and (match := next((m for format in candidates if (m := format.match(content))), None)):
        available = ", ".join(match.format.list_branches(content))
        raise UserError(f"{path}: this {match.format.name} file has no branch {branch!r}, only {available}")
    options = [option for option, value in (("--from", name), ("--prefix", prefix)) if value is not None]
    raise UserError(f"{path}: {_explain_unknown(content, candidates[0], options)}")


def _sort_tensors(
    content: Any, format_match: FormatMatch, state: Mapping[str, Tensor], best: ArchitectureMatch
) -> tuple[dict[str, Tensor], Coverage, dict[str, Tensor]]:
    """The backbone under torchvision's names, what became of each tensor, and a detector's other tensors."""
    layout, format = format_match.layout, format_match.format
    tensors = {torchvision_name(spec): compact(state[name]) for spec, name in best.matched.items()}
    for spec in best.architecture.tensors:
        if (make := layout.constants.get(spec.name_in_layer)) is not None and spec.is_norm and spec not in best.matched:
            tensors[torchvision_name(spec)] = make(spec.shape)
    floats = ((name, state[name]) for spec, name in best.matched.items() if spec.shape)
    invalid = {**best.mismatched, **find_invalid_values(floats)}
    used = [name for name in best.matched.values() if name not in invalid]
    of_backbone = {*best.matched.values(), *best.mismatched}
    others = {name: value for name, value in format_match.state.items() if name not in of_backbone}
    found = format.find_detector_tensors(content, others) if format.find_detector_tensors else []
    oversized = {each.key for each in found if is_oversized_view(each.tensor)}
    invalid |= dict.fromkeys(oversized, "claims more elements than the file has")
    detector = {each.name: compact(each.tensor) for each in found if each.key not in oversized}
    of_detector = {each.key for each in found}
    invalid |= find_invalid_values(item for item in detector.items() if not item[0].endswith(NUM_BATCHES_TRACKED))
    left_out, unmatched = {}, []
    for name, value in others.items():
        is_tensor = as_tensor(value) is not None
        reason = format.reason_to_leave_out(name, format_match) if is_tensor else "not a tensor"
        if reason is not None:
            left_out[name] = reason
        elif name not in of_detector:
            unmatched.append(name)
    return tensors, Coverage(tuple(used), left_out, tuple(unmatched), best.missing, invalid), detector


def _explain_unknown(content: Any, format: Format, options: Sequence[str]) -> str:
    """Why no format matches, and what to do; ``options`` are those that asked for this one format."""
    if options:
        keys = [layout.stem_key for layouts in format.branches.values() for layout in layouts]
        advice = f"leave out {' and '.join(options)}"
        return f"it is not in the format {format.name} ({' or '.join(keys[:3])} is not in it); {advice}"
    layouts = [layout for format in FORMATS for branch in format.branches.values() for layout in branch]
    containers = dict.fromkeys(name for layout in layouts for name in layout.containers)
    states = [state for name in containers if (state := get_state_dict(content, name)) is not None]
    tensor_names = (name for state in states for name, value in state.items() if as_tensor(value) is not None)
    names = list(dict.fromkeys(tensor_names))
    if not names:
        return "there are no tensors in it under the usual names (state_dict, model, ...); is it a checkpoint?"
    for end in _STAGE_STARTS:
        if name := next((name for name in names if name.endswith(f".{end}")), None):
            prefix = printable(name.removesuffix(end), _MAX_PREFIX_LENGTH)
            return f"its ResNet is under an unknown prefix; pass --prefix {prefix!r}"
    known = ", ".join(format.name for format in FORMATS)
    return f"no ResNet is found in it; its tensors are {summarize_names(names)} (known formats: {known})"
