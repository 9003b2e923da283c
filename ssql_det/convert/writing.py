"""``write(checkpoint, path, format)``: a checkpoint into a file, exactly, or a refusal that says what cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.format import Writer
from ssql_det.convert.formats import FORMATS
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.files import atomic_write


def writers() -> dict[str, Writer]:
    """The formats that can be written, by name."""
    return {each.name: each.writer for each in FORMATS if each.writer is not None}


def check_output(path: str | os.PathLike[str], format: str, replace: bool = False) -> Writer:
    """Everything about an output that can be refused before a long reading."""
    known = writers()
    if format not in known:
        raise UserError(f"cannot write {format!r}{did_you_mean(format, known)} (can write: {', '.join(known)})")
    writer = known[format]
    if Path(path).suffix not in writer.suffixes:
        raise UserError(f"a file of format {format} ends in {' or '.join(writer.suffixes)}; got {path}")
    if Path(path).exists() and not replace:
        raise UserError(f"{path} exists already; choose another name, or say --force to replace it")
    return writer


def write(
    checkpoint: Checkpoint, path: str | os.PathLike[str], format: str, replace: bool = False
) -> Mapping[str, str]:
    """Write the file, whole or not at all; return what the format could not carry, by name and reason.

    >>> write(read("moco_v2.pth.tar"), "moco_v2.pkl", "detectron2")
    {'bn1.num_batches_tracked': 'FrozenBN has no place for it, and none of the norms uses it', ...}
    """
    writer = check_output(path, format, replace)
    with atomic_write(path) as file:
        return writer.write(checkpoint, file)
