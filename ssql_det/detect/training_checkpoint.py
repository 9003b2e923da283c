"""Checkpoints of a detector's training, in Detectron2's layout, with everything that a resumed run needs.

``OUTPUT_DIR/model_0004999.pth`` has Detectron2's ``model``, ``optimizer``, ``scheduler`` and ``iteration``, and
also the states of the random generators, the latest scalars, the files of unreadable images and the metadata of
the backbone. The file ``last_checkpoint`` has the name of the newest checkpoint.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssql_det.convert import Metadata
from ssql_det.convert.checkpoint import check_state
from ssql_det.convert.metadata import METADATA_KEY
from ssql_det.core.distributed import all_gather, is_main, rank
from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import atomic_write, read_text
from ssql_det.core.optimizer_state import STATE_ERRORS, load_optimizer_state
from ssql_det.core.rng import gather_rng_states, restore_rng_state
from ssql_det.core.tensor_files import save_tensors
from ssql_det.core.unpickler import read_tensors
from ssql_det.d2 import EventStorage
from ssql_det.detect.train_loader import BadImageLog

LAST_CHECKPOINT_NAME = "last_checkpoint"
FINAL_NAME = "model_final"  # of the last checkpoint, without .pth
WINDOW_SIZE = 20  # iterations between log lines; the lines have the medians over these iterations
_MAX_NAME_LENGTH = 80  # in a message
_TIMING_SCALARS = ("time", "eta_seconds")  # not saved, so that equal runs write identical checkpoints
_CHECKPOINT_KEYS = ("model", "optimizer", "scheduler", "iteration", "rng", "history", "bad_images", METADATA_KEY)


@dataclass(frozen=True)
class TrainingCheckpointer:
    """Saves the state of a training and restores it.

    ``checkpointables`` has the objects under the keys ``model``, ``optimizer`` and ``scheduler``, and as ``trained``
    modules that are trained beside the detector, if they have a state.
    """

    folder: Path
    checkpointables: Mapping[str, Any]
    storage: EventStorage
    bad_images: BadImageLog

    def save(self, name: str, iteration: int, metadata: Mapping[str, Any]) -> Path:
        """Write the state after ``iteration``, counted from 0, to ``name.pth``, then ``last_checkpoint``.

        Every rank calls it.
        """
        path = self.folder / f"{name}.pth"
        rank_states = {"rng": gather_rng_states(), "bad_images": all_gather(sorted(self.bad_images.names))}
        if is_main():
            content = {key: value.state_dict() for key, value in self.checkpointables.items()}
            content |= {"iteration": iteration, "history": _get_latest_scalars(self.storage)}
            content |= {METADATA_KEY: dict(metadata), **rank_states}
            with atomic_write(path) as file:
                save_tensors(content, file)
            with atomic_write(self.folder / LAST_CHECKPOINT_NAME, "w") as file:
                file.write(path.name)
        return path

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Restore the newest checkpoint; returns the iteration after which it was saved, and its metadata."""
        path = _find_newest(self.folder)
        content = read_tensors(path)
        needed = dict.fromkeys((*_CHECKPOINT_KEYS, *self.checkpointables))
        missing = [key for key in needed if not isinstance(content, dict) or key not in content]
        if missing:
            raise UserError(f"{path} cannot be resumed from: it has no {missing[0]}; train again in another OUTPUT_DIR")
        try:
            self._restore(content)
        except STATE_ERRORS as failure:
            reason = (str(failure).splitlines() or [type(failure).__name__])[0]
            raise UserError(
                f"{path} does not fit this config ({reason}); resume with the config of the run that wrote it, "
                "or train in another OUTPUT_DIR"
            ) from failure
        return content["iteration"], content[METADATA_KEY]

    def _restore(self, content: Mapping[str, Any]) -> None:
        model, optimizer, scheduler = (self.checkpointables[key] for key in ("model", "optimizer", "scheduler"))
        model.load_state_dict(content["model"])
        check_state(model.state_dict())
        if "trained" in self.checkpointables:
            self.checkpointables["trained"].load_state_dict(content["trained"])
        load_optimizer_state(optimizer, content["optimizer"])
        iteration = content["iteration"]
        if type(iteration) is not int or iteration < 0:
            raise ValueError(f"its iteration must be a whole number from 0, got {reprlib.repr(iteration)}")
        # The engine saves the base learning rates and last_epoch alone: another difference is another config.
        if content["scheduler"] != {**scheduler.state_dict(), "last_epoch": iteration + 1}:
            raise ValueError(f"the state of its scheduler is not the one that this config has at iteration {iteration}")
        scheduler.load_state_dict(content["scheduler"])
        Metadata.from_dict(content[METADATA_KEY])  # raises if it is damaged
        _restore_scalars(self.storage, content["history"])
        # A slice, which is empty if the run that saved it had too few ranks to have an entry for this one.
        for names in content["bad_images"][rank() : rank() + 1]:
            self.bad_images.names.update(map(str, names))
        restore_rng_state(content["rng"])


def _find_newest(folder: Path) -> Path:
    """The newest checkpoint; ``last_checkpoint`` has its name without a folder, so that a run can be moved."""
    file = folder / LAST_CHECKPOINT_NAME
    name = read_text(file, errors="replace").strip()
    if not name or Path(name).name != name:
        quoted = printable(repr(name), _MAX_NAME_LENGTH)
        raise UserError(f"{file} must have the name of a checkpoint in the same folder, got {quoted}")
    return folder / name


def _get_latest_scalars(storage: EventStorage) -> dict[str, dict[str, Any]]:
    """The scalars of the last ``WINDOW_SIZE`` iterations, so that a resumed run logs the same medians.

    >>> with EventStorage() as storage:
    ...     storage.put_scalar("total_loss", 2.5)
    >>> _get_latest_scalars(storage)
    {'total_loss': {'is_noisy': True, 'values': [(2.5, 0)]}}
    """
    is_noisy, first_iteration = storage.smoothing_hints(), storage.iter - WINDOW_SIZE + 1
    return {
        name: {
            "is_noisy": is_noisy[name],
            "values": [
                (value, int(iteration)) for value, iteration in history.values() if iteration >= first_iteration
            ],
        }
        for name, history in storage.histories().items()
        if name not in _TIMING_SCALARS
    }


def _restore_scalars(storage: EventStorage, scalars: Mapping[str, Mapping[str, Any]]) -> None:
    for name, saved in scalars.items():
        for value, iteration in saved["values"]:
            storage.put_scalar(name, value, smoothing_hint=saved["is_noisy"], cur_iter=iteration)
