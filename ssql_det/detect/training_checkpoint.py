"""A detector from a file, every tensor in its place, and checkpoints of its training: Detectron2's layout, whole or
absent, with all that a resumed run needs.

``OUTPUT_DIR/model_0004999.pth`` has ``model``, ``optimizer``, ``scheduler`` and ``iteration``, as Detectron2 writes
them, and beside them the generators' state, the latest scalars and what is known about the network.
``last_checkpoint`` names the newest.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssql_det.convert import (
    Metadata,
)
from ssql_det.convert.checkpoint import METADATA_KEY, summarize_names
from ssql_det.convert.format import find_invalid_values
from ssql_det.core.distributed import all_gather, is_main, rank
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.optimizer_state import load_optimizer_state
from ssql_det.core.rng import gather_rng_states, restore_rng_state
from ssql_det.core.tensor_files import save_tensors
from ssql_det.core.unpickler import read_tensors
from ssql_det.d2 import EventStorage
from ssql_det.detect.train_loader import BadImageLog

LAST_CHECKPOINT_NAME = "last_checkpoint"
FINAL_NAME = "model_final"
WINDOW_SIZE = 20  # iterations that a median of scalars is of, and between log lines
_BY_THE_CLOCK = ("time", "eta_seconds")  # scalars that are left out: equal runs have equal checkpoints, to the byte
_KEYS = ("model", "optimizer", "scheduler", "iteration", "rng", "history", "bad_images", METADATA_KEY)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingCheckpointer:
    """What a training changes. ``parts`` are model, optimizer and scheduler, each with a ``state_dict``.

    >>> run = TrainingCheckpointer(folder, {"model": model, "optimizer": optimizer, "scheduler": scheduler}, storage, bad_images)
    >>> run.save("model_0000499", 499, description)
    >>> iteration, description = TrainingCheckpointer(folder, parts, storage, bad_images).resume()
    """

    folder: Path
    parts: Mapping[str, Any]
    storage: EventStorage
    bad_images: BadImageLog

    def save(self, name: str, iteration: int, description: Mapping[str, Any]) -> Path:
        """Write ``name.pth``, then the tag. ``iteration`` is the last that is in it; every rank takes part."""
        path = self.folder / f"{name}.pth"
        of_ranks = {"rng": gather_rng_states(), "bad_images": all_gather(sorted(self.bad_images.names))}
        if is_main():
            content = {key: part.state_dict() for key, part in self.parts.items()}
            content |= {
                "iteration": iteration,
                "history": _latest_scalars(self.storage),
                METADATA_KEY: dict(description),
            }
            with atomic_write(path) as file:
                save_tensors(content | of_ranks, file)
            with atomic_write(self.folder / LAST_CHECKPOINT_NAME, "w") as tag:
                tag.write(path.name)
        return path

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Take up the state of the newest checkpoint; its iteration, and its description."""
        path = _newest(self.folder)
        content = read_tensors(path)
        missing = [key for key in _KEYS if key not in content] if isinstance(content, dict) else list(_KEYS)
        if missing:
            raise UserError(f"{path} cannot be resumed from: it has no {missing[0]}; train anew in another OUTPUT_DIR")
        try:
            model, optimizer, scheduler = (self.parts[key] for key in ("model", "optimizer", "scheduler"))
            model.load_state_dict(content["model"])
            wrong = find_invalid_values(model.named_parameters())
            if wrong:
                raise ValueError(summarize_names([f"{name} {fault}" for name, fault in wrong.items()]))
            load_optimizer_state(optimizer, content["optimizer"])
            iteration = content["iteration"]
            if not isinstance(iteration, int) or iteration < 0:
                raise ValueError(f"its iteration is {reprlib.repr(iteration)}")
            if content["scheduler"] != {**scheduler.state_dict(), "last_epoch": iteration + 1}:
                raise ValueError(f"its scheduler is not as this config has it at iteration {iteration}")
            scheduler.load_state_dict(content["scheduler"])
            Metadata.from_dict(content[METADATA_KEY])
            _restore_scalars(self.storage, content["history"])
            self.bad_images.names.update(*content["bad_images"][rank() : rank() + 1])
            restore_rng_state(content["rng"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as failure:
            reason = str(failure).splitlines()[0]
            raise UserError(
                f"{path} does not fit this config ({reason}); resume with the config of that run, or train in another "
                "OUTPUT_DIR"
            ) from failure
        return iteration, content[METADATA_KEY]


def _newest(folder: Path) -> Path:
    """What the tag names; it lies beside it, wherever the folder was moved."""
    name = (folder / LAST_CHECKPOINT_NAME).read_text("utf-8", errors="replace").strip()
    if not name or Path(name).name != name:
        raise UserError(
            f"{folder / LAST_CHECKPOINT_NAME} names {name!r}, which is no file of that folder; write a checkpoint's name there"
        )
    return folder / name


def _latest_scalars(storage: EventStorage) -> dict[str, dict[str, Any]]:
    """Of the last ``WINDOW_SIZE`` iterations, so that a resumed run has the medians of one that was not stopped.

    >>> _latest_scalars(storage)["total_loss"]
    {'is_noisy': True, 'values': [(2.41, 480), ..., (2.12, 499)]}
    """
    is_noisy, first = storage.smoothing_hints(), storage.iter - WINDOW_SIZE + 1
    return {
        name: {
            "is_noisy": is_noisy[name],
            "values": [(value, int(iteration)) for value, iteration in history.values() if iteration >= first],
        }
        for name, history in storage.histories().items()
        if name not in _BY_THE_CLOCK
    }


def _restore_scalars(storage: EventStorage, scalars: Mapping[str, Mapping[str, Any]]) -> None:
    """Into a storage that is new."""
    for name, kept in scalars.items():
        for value, iteration in kept["values"]:
            storage.put_scalar(name, value, smoothing_hint=kept["is_noisy"], cur_iter=iteration)
