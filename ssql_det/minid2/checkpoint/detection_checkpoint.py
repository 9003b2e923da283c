"""Saving and loading checkpoints. Unlike Detectron2's, this opens no pickle itself and writes files atomically.

The package that embeds minid2 sets ``DetectionCheckpointer.read_file`` to a function that reads files without running
code from them. ``_load_model`` takes weights that were already read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, ClassVar
from urllib.parse import parse_qs

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ..utils import comm
from ..utils.file_io import PathManager
from .c2_model_loading import align_and_update_state_dicts

__all__ = ["DetectionCheckpointer"]


class DetectionCheckpointer(Checkpointer):
    """Saves and loads a model and other objects with a ``state_dict``, as ``name.pth`` and ``last_checkpoint``.

    >>> checkpointer = DetectionCheckpointer(nn.Linear(2, 2), ".")
    >>> checkpointer.save("model_0000009", iteration=9)
    >>> checkpointer.get_checkpoint_file()
    './model_0000009.pth'
    """

    read_file: ClassVar[Callable[[str], Any] | None] = None

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._query = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` with all states and ``kwargs``, which ``load`` returns."""
        if not self.save_dir or not self.save_to_disk:
            return
        file = f"{name}.pth"
        assert os.path.basename(file) == file, f"{name!r} must be a file name in {self.save_dir}, not a path"
        path = os.path.join(self.save_dir, file)
        states = {key: each.state_dict() for key, each in self.checkpointables.items()}
        self.logger.info(f"Saving checkpoint to {path}")
        with _replacing(path) as stream:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, stream)
        self.tag_last_checkpoint(file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with _replacing(os.path.join(self.save_dir, "last_checkpoint")) as stream:
            stream.write(last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Load the states of the model and of the other objects; return the rest of the file.

        ``model.pth?matching_heuristics=True`` also loads weights whose names lack the model's prefixes.
        """
        logging.getLogger(__name__).info(f"[DetectionCheckpointer] Loading from {path} ...")
        if path:
            path, _, self._query = path.partition("?")
            path = self.path_manager.get_local_path(path)
            if not os.path.isfile(path):
                raise FileNotFoundError(self._why_missing(path))
        return super().load(path, *args, **kwargs)

    def _why_missing(self, path: str) -> str:
        if self.save_dir and path == self.get_checkpoint_file():
            tag = os.path.join(self.save_dir, "last_checkpoint")
            return f"Checkpoint {path}, which {tag} names, does not exist: put it back, or delete {tag} to start anew"
        return f"Checkpoint {path} does not exist: give an existing file, in a config as MODEL.WEIGHTS"

    def _load_file(self, filename: str) -> dict[str, Any]:
        read_file = type(self).read_file
        if read_file is None:
            raise NotImplementedError(f"Cannot load {filename}: DetectionCheckpointer.read_file is not set")
        loaded = read_file(filename)
        if not isinstance(loaded, dict) or not isinstance(loaded.get("model", loaded), dict):
            raise ValueError(f"Cannot load {filename}: it is not a dict of weights by name")
        if "model" not in loaded:
            loaded = {"model": loaded}
        queries = parse_qs(self._query)
        if queries.pop("matching_heuristics", []) == ["True"]:
            loaded["matching_heuristics"] = True
        if queries:
            raise ValueError(f"Cannot load {filename}?{self._query}: the only query is ?matching_heuristics=True")
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Load ``{"model": state, "matching_heuristics": bool}``; return the incompatible keys."""
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            of_caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(self.model.state_dict(), checkpoint["model"], of_caffe2)
        incompatible = super()._load_model(checkpoint)
        # Old checkpoints lack the pixel statistics, which the config gives, and have the anchors, which are computed.
        buffers = dict(self.model.named_buffers(recurse=False))
        of_config = [name for name in ("pixel_mean", "pixel_std") if name in buffers]
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        missing[:] = [name for name in missing if name not in of_config]
        unexpected[:] = [name for name in unexpected if "anchor_generator.cell_anchors" not in name]
        return incompatible


@contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when it is complete and on disk.

    Its name is fixed, so that a resumed run overwrites the file that a killed run left.
    """
    unfinished = f"{path}.tmp"
    try:
        with open(unfinished, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.remove(unfinished)
        raise
