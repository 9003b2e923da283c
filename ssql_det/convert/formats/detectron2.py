"""Detectron2's ResNet alone, ``.pkl``: arrays that Detectron2 matches to a detector's tensors by name suffix.

Such files come from Detectron2's and MoCo's conversion scripts, from Detectron2's model zoo, and from this project.
This project's have metadata; in the others ``__author__`` may tell input and stride, which are unknown otherwise.

The format does not store ``num_batches_tracked``, which FrozenBatchNorm2d does not have.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from ssql_det.convert.architecture import NUM_BATCHES_TRACKED, Architecture
from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.format import Format, FormatMatch, Layout, Names, Writer, as_tensor, rename_tensors
from ssql_det.convert.metadata import (
    METADATA_KEY,
    InputFormat,
    Metadata,
    assume_metadata,
    assume_model_zoo_metadata,
    parse_metadata,
)
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
_DETECTRON2_DEPTHS = (18, 34, 50, 101, 152)
_PICKLE_PROTOCOL = 3  # the last that writes a function's name as a line of text
_OLD_MODULE_NAMES = {"numpy._core.multiarray": "numpy.core.multiarray"}  # NumPy 1 does not have NumPy 2's name


def get_config_overrides(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys that a Detectron2 config needs for this backbone; None for what the file does not say.

    >>> from ssql_det.convert import IMAGENET, Metadata, get_architecture
    >>> checkpoint = Checkpoint(get_architecture("resnet50"), {}, Metadata(IMAGENET, stride_in_1x1=False))
    >>> get_config_overrides(checkpoint)["INPUT.FORMAT"]
    'RGB'
    """
    architecture, metadata = checkpoint.architecture, checkpoint.metadata
    input_format = metadata.input
    overrides: dict[str, Any] = {
        "INPUT.FORMAT": input_format and input_format.channels,
        "MODEL.PIXEL_MEAN": input_format and list(input_format.mean),
        "MODEL.PIXEL_STD": input_format and list(input_format.std),
    }
    if architecture.depth in _DETECTRON2_DEPTHS:
        overrides["MODEL.RESNETS.DEPTH"] = architecture.depth
    if not architecture.is_bottleneck:
        return overrides | {"MODEL.RESNETS.RES2_OUT_CHANNELS": architecture.widths[0]}
    overrides["MODEL.RESNETS.STRIDE_IN_1X1"] = metadata.stride_in_1x1
    if architecture.bottleneck_widths[0] != 64:
        overrides["MODEL.RESNETS.NUM_GROUPS"] = architecture.groups
        overrides["MODEL.RESNETS.WIDTH_PER_GROUP"] = architecture.bottleneck_widths[0] // architecture.groups
    return overrides


def read_metadata(content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
    """From this project's metadata; else by ``__author__``; else only the input, from a detector's mean and std."""
    if METADATA_KEY in content:
        return parse_metadata(content.get(METADATA_KEY), architecture)
    author = content.get("__author__")
    if author in ("torchvision", "MOCO"):  # by the scripts that convert torchvision's and MoCo's networks
        return assume_metadata(architecture, method="moco" if author == "MOCO" else None)
    has_frozen_norms = not any(name.endswith(NUM_BATCHES_TRACKED) for name in match.state)
    if author == "Detectron2 Model Zoo" and has_frozen_norms:  # pretrained by MSRA
        return assume_model_zoo_metadata(architecture)
    mean, std = (as_tensor(match.state.get(name)) for name in ("pixel_mean", "pixel_std"))
    if mean is None or std is None:
        return Metadata()
    if (mean.numel(), std.numel()) != (3, 3):
        raise ValueError(f"pixel_mean has {mean.numel()} and pixel_std {std.numel()} numbers, not three each")
    (mean0, mean1, mean2), (std0, std1, std2) = (
        [round(value, 4) for value in tensor.flatten().tolist()]  # as in the config, without float32's digits
        for tensor in (mean, std)
    )
    if mean0 == mean2:  # the channel order cannot be inferred
        return Metadata()
    return Metadata(InputFormat("BGR" if mean0 < mean2 else "RGB", (mean0, mean1, mean2), (std0, std1, std2)))


def rename_to_detectron2(checkpoint: Checkpoint, layout: Layout) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The backbone's tensors under a layout's names, and those left behind, each with a reason."""
    if checkpoint.architecture.has_cifar_stem:
        raise UserError(
            f"{checkpoint.display_name} is a {checkpoint.architecture.name}, its stem of stride 1 for images of 32 "
            "pixels, and Detectron2's ResNet has one of stride 4; convert it to torchvision, safetensors or ssql_det"
        )
    counters = {name for name in checkpoint.tensors if name.endswith(NUM_BATCHES_TRACKED)}
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in counters}
    reason = "Detectron2's FrozenBatchNorm2d has no such buffer"
    return rename_tensors(kept, checkpoint.architecture, layout), dict.fromkeys(sorted(counters), reason)


class _Pickler(pickle._Pickler):
    """Names NumPy's functions as all versions of NumPy know them; only the pickler written in Python allows that."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = _OLD_MODULE_NAMES.get(getattr(obj, "__module__", None) or "")
        if module is None:
            super().save_global(obj, name)  # type: ignore[misc]
        else:
            self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]


def _to_array(tensor: Tensor) -> Any:
    """NumPy has no bfloat16; float32 holds every value of it."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    tensors, left_behind = rename_to_detectron2(checkpoint, _BACKBONE)
    arrays = {name: _to_array(tensor) for name, tensor in tensors.items()}
    content = {"model": arrays, "__author__": "ssql_det", "matching_heuristics": True}
    content[METADATA_KEY] = checkpoint.metadata_dict()
    _Pickler(file, _PICKLE_PROTOCOL).dump(content)
    return left_behind | dict.fromkeys(checkpoint.detector, "a detector's, not of the backbone")


DETECTRON2 = Format(
    name="detectron2",
    title="Detectron2's ResNet alone, under its names",
    branches={"online": (_BACKBONE,)},
    left_out={"stem.fc.*": "a classifier", "fc.*": "a classifier", "linear.*": "a classifier"},
    read_metadata=read_metadata,
    writer=Writer((".pkl",), _write),
    not_stored="num_batches_tracked",
)
