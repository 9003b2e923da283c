"""Checkpoints of a detection training: Detectron2's layout, whole or absent, with all that a resumed run needs.

``OUTPUT_DIR/model_0004999.pth`` has ``model``, ``optimizer``, ``scheduler`` and ``iteration``, as Detectron2 writes
them, and beside them the generators' state and what is known about the network. ``last_checkpoint`` names the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssql_det.convert.checkpoint import KEY
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.reader import read_tensors
from ssql_det.core.resume import RngState

TAG = "last_checkpoint"
FINAL = "model_final"
_KEYS = ("model", "optimizer", "scheduler", "iteration", "rng", KEY)


def save(folder: Path, name: str, iteration: int, parts: Mapping[str, Any], description: Mapping[str, Any]) -> Path:
    """Write ``name.pth``, then the tag. ``iteration`` is the last that is in it; ``parts`` have a ``state_dict``."""
    content = {key: part.state_dict() for key, part in parts.items()}
    content |= {"iteration": iteration, "rng": vars(RngState.capture()), KEY: dict(description)}
    path = folder / f"{name}.pth"
    with atomic_write(path) as file:
        torch.save(content, file)
    with atomic_write(folder / TAG, "w") as tag:
        tag.write(path.name)
    return path


def resume(folder: Path, parts: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Bring the newest checkpoint's state into the parts and the generators; its iteration and its description."""
    path = folder / (folder / TAG).read_text("utf-8").strip()
    content = read_tensors(path)
    missing = [key for key in _KEYS if key not in content] if isinstance(content, dict) else list(_KEYS)
    if missing:
        raise UserError(f"{path} cannot be resumed from: it has no {missing[0]}; train anew in another OUTPUT_DIR")
    try:
        for key, part in parts.items():
            part.load_state_dict(content[key])
    except (KeyError, RuntimeError, ValueError) as failure:
        reason = str(failure).splitlines()[0]
        raise UserError(
            f"{path} does not fit this config ({reason}); resume with the config of that run, or train in another "
            "OUTPUT_DIR"
        ) from failure
    RngState(**content["rng"]).restore()
    return content["iteration"], content[KEY]
