"""Detectron2's ResNet alone, ``.pkl``: arrays that find their places in a detector by the ends of their names.

Such files come from Detectron2's and MoCo's conversion scripts, from its model zoo, and from here. Ours say in
addition what is known about the network; others say it by ``__author__`` at best, and what is not known stays unknown.

Does not carry: ``num_batches_tracked``, which FrozenBN has no place for.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from ssql_det.convert.architecture import NUM_BATCHES_TRACKED, Architecture
from ssql_det.convert.checkpoint import (
    METADATA_KEY,
    Checkpoint,
    InputFormat,
    Metadata,
    customary,
    customary_in_zoo,
    described,
)
from ssql_det.convert.format import Format, Found, Layout, Names, Writer, as_tensor, renamed
from ssql_det.core.errors import UserError

NAMES = Names(
    stem="stem.conv1",
    stem_norm="stem.conv1.norm",
    conv="res{stage}.{block}.conv{conv}",
    norm="res{stage}.{block}.conv{conv}.norm",
    shortcut="res{stage}.{block}.shortcut",
    shortcut_norm="res{stage}.{block}.shortcut.norm",
    first_stage=2,
)
_BACKBONE = Layout(names=NAMES)
_DEPTHS = (18, 34, 50, 101, 152)  # that Detectron2 builds
_PROTOCOL = 3  # of pickle: the last that writes a function's name as a line of text
_OLD_NAMES = {"numpy._core.multiarray": "numpy.core.multiarray"}  # since NumPy 2 pickles name what older ones lack


def get_config_overrides(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a Detectron2 config has to say for this backbone; None where the file does not tell.

    >>> config_lines(read_checkpoint("moco_v2.pth.tar"))["INPUT.FORMAT"]
    'RGB'
    """
    architecture, metadata = checkpoint.architecture, checkpoint.metadata
    images = metadata.input
    lines: dict[str, Any] = {
        "INPUT.FORMAT": images and images.channels,
        "MODEL.PIXEL_MEAN": images and list(images.mean),
        "MODEL.PIXEL_STD": images and list(images.std),
    }
    if architecture.depth in _DEPTHS:
        lines["MODEL.RESNETS.DEPTH"] = architecture.depth
    if not architecture.is_bottleneck:
        return lines | {"MODEL.RESNETS.RES2_OUT_CHANNELS": architecture.widths[0]}
    lines["MODEL.RESNETS.STRIDE_IN_1X1"] = metadata.stride_in_1x1
    if architecture.inner[0] != 64:
        lines["MODEL.RESNETS.NUM_GROUPS"] = architecture.groups
        lines["MODEL.RESNETS.WIDTH_PER_GROUP"] = architecture.inner[0] // architecture.groups
    return lines


def facts_of(content: Any, found: Found, architecture: Architecture) -> Metadata:
    """From our own description; else from the author; else the images alone, from what old detectors kept of them."""
    if METADATA_KEY in content:
        return described(content.get(METADATA_KEY), architecture)
    author = content.get("__author__")
    if author in ("torchvision", "MOCO"):  # by the scripts that convert torchvision's and MoCo's networks
        return customary(architecture, method="moco" if author == "MOCO" else None)
    if author == "Detectron2 Model Zoo" and not any(name.endswith(NUM_BATCHES_TRACKED) for name in found.state):
        return customary_in_zoo(architecture)  # trained with norms frozen
    mean, std = (as_tensor(found.state.get(name)) for name in ("pixel_mean", "pixel_std"))
    if mean is None or std is None:
        return Metadata()
    if (mean.numel(), std.numel()) != (3, 3):
        raise ValueError(f"pixel_mean has {mean.numel()} and pixel_std {std.numel()} numbers, not three each")
    (first, second, third), (one, two, three) = (
        [round(value, 4) for value in tensor.flatten().tolist()]
        for tensor in (mean, std)  # as they were written
    )
    if first == third:  # which says nothing of their order
        return Metadata()
    return Metadata(InputFormat("BGR" if first < third else "RGB", (first, second, third), (one, two, three)))


def write_names(checkpoint: Checkpoint, layout: Layout) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The backbone for Detectron2 under a layout's names; the counters are left behind."""
    if checkpoint.architecture.is_cifar:
        raise UserError(
            f"{checkpoint.display_name} is a {checkpoint.architecture.name}, its stem of stride 1 for images of 32 "
            "pixels, and Detectron2's ResNet one of stride 4; convert it to torchvision, safetensors or ssql_det"
        )
    counters = {name for name in checkpoint.tensors if name.endswith(NUM_BATCHES_TRACKED)}
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in counters}
    reason = "FrozenBN has no place for it, and no norm of Detectron2's uses it"
    return renamed(kept, checkpoint.architecture, layout), dict.fromkeys(sorted(counters), reason)


class _Pickler(pickle._Pickler):
    """Python's pickler, the one written in Python, with NumPy's functions by the names that all versions know."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = _OLD_NAMES.get(getattr(obj, "__module__", None) or "")
        if module is None:
            super().save_global(obj, name)  # type: ignore[misc]
        else:
            self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]


def _as_array(tensor: Tensor) -> Any:
    """NumPy has no bfloat16; float32 holds every value of it."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    named, left_behind = write_names(checkpoint, _BACKBONE)
    arrays = {name: _as_array(tensor) for name, tensor in named.items()}
    content = {
        "model": arrays,
        "__author__": "ssql_det",
        "matching_heuristics": True,
        METADATA_KEY: checkpoint.metadata_dict(),
    }
    _Pickler(file, _PROTOCOL).dump(content)
    return left_behind | dict.fromkeys(checkpoint.detector, "a detector's, not of the backbone")


DETECTRON2 = Format(
    name="detectron2",
    title="Detectron2's ResNet alone, under its names",
    branches={"online": (_BACKBONE,)},
    left_out={"stem.fc.*": "a classifier", "fc.*": "a classifier", "linear.*": "a classifier"},
    metadata=facts_of,
    writer=Writer((".pkl",), _write),
    note="num_batches_tracked",
)
