"""torchvision's ResNets: a plain state dict. timm and nearly every PyTorch ResNet have the same names.

By convention the images are RGB, with ImageNet's mean and std, and bottlenecks have their stride in the 3x3 conv. The
format does not store the method or another mean and std, and cannot be used for a stride in the 1x1 conv.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

from torch import Tensor

from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.format import Format, Layout, Writer
from ssql_det.convert.metadata import assume_metadata
from ssql_det.core.errors import UserError
from ssql_det.core.tensor_files import save_tensors

_HINT = "give the config that it was trained with: --trained-with CONFIG.yaml"


def to_torchvision(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The backbone for torchvision's ResNet, and what is left behind. The stem's BGR filters are flipped to RGB."""
    name, metadata = checkpoint.display_name, checkpoint.metadata
    if checkpoint.architecture.is_bottleneck and metadata.stride_in_1x1 is None:
        raise UserError(f"{name} does not say whether its strides are in the 1x1 or the 3x3 convs; {_HINT}")
    if checkpoint.architecture.is_bottleneck and metadata.stride_in_1x1:
        raise UserError(
            f"{name} has its strides in the 1x1 convs, as MSRA's networks have, but torchvision and timm have them in "
            "the 3x3 convs and would compute something else; convert it to detectron2 or ssql_det"
        )
    if metadata.input is None:
        raise UserError(f"{name} does not say whether it takes RGB or BGR images; {_HINT}")
    tensors = dict(checkpoint.tensors)
    if metadata.input.channels == "BGR":
        tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    return tensors, dict.fromkeys(checkpoint.detector, "a detector's, not of the backbone")


def write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    tensors, left_behind = to_torchvision(checkpoint)
    save_tensors(tensors, file)
    input_format, assumed = checkpoint.metadata.input, assume_metadata(checkpoint.architecture).input
    if input_format is not None and assumed is not None:
        input_format = input_format if input_format.channels == "RGB" else input_format.flip_channels()
        if input_format != assumed:
            left_behind["input"] = (
                f"the format does not store mean {list(input_format.mean)} and std {list(input_format.std)}"
            )
    return left_behind


TORCHVISION = Format(
    name="torchvision",
    title="torchvision's ResNets",
    branches={"online": (Layout(),)},
    left_out={"fc.*": "a classifier", "head.*": "a classifier"},
    writer=Writer((".pth", ".pt"), write),
    not_stored="method, mean and std of the images; a stride in the 1x1",
)
