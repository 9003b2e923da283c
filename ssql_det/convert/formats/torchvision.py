"""torchvision's ResNets, whose names are the neutral ones. A plain state dict: RGB and a stride in the 3x3 by custom.

timm and nearly every PyTorch ResNet share that convention.

Does not carry: the method, the images' mean and std, any stride in a 1x1 conv.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

from torch import Tensor

from ssql_det.convert.checkpoint import Checkpoint, customary
from ssql_det.convert.format import Format, Layout, Writer
from ssql_det.core.errors import UserError
from ssql_det.core.tensor_files import save_tensors

_TRAINED_WITH = "say which with --trained-with CONFIG.yaml, the config it was trained with"


def as_pytorch(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The backbone for a network of that convention, and what is left behind. BGR filters are turned, exactly."""
    metadata = checkpoint.metadata
    if checkpoint.architecture.is_bottleneck and metadata.stride_in_1x1 is None:
        raise UserError(
            f"{checkpoint.display_name} does not say whether it strides in its 1x1 or its 3x3 convs; {_TRAINED_WITH}"
        )
    if checkpoint.architecture.is_bottleneck and metadata.stride_in_1x1:
        raise UserError(
            f"{checkpoint.display_name} strides in its 1x1 convs, as MSRA's networks do, and torchvision's and timm's "
            "do in the 3x3 convs, so the same weights would compute something else; use detectron2 or ssql_det"
        )
    if metadata.input is None:
        raise UserError(f"{checkpoint.display_name} does not say whether it takes RGB or BGR images; {_TRAINED_WITH}")
    tensors = dict(checkpoint.tensors)
    if metadata.input.channels == "BGR":
        tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    return tensors, dict.fromkeys(checkpoint.detector, "a detector's, not of the backbone")


def write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    tensors, left_behind = as_pytorch(checkpoint)
    save_tensors(tensors, file)
    metadata, custom = checkpoint.metadata, customary(checkpoint.architecture)
    if metadata.input is not None and custom.input is not None:
        images = metadata.input if metadata.input.channels == "RGB" else metadata.input.flip_channels()
        if images != custom.input:
            left_behind["input"] = f"the file has no room for mean {list(images.mean)} and std {list(images.std)}"
    return left_behind


TORCHVISION = Format(
    name="torchvision",
    title="torchvision's ResNets",
    branches={"online": (Layout(),)},
    left_out={"fc.*": "a classifier", "head.*": "a classifier"},
    writer=Writer((".pth", ".pt"), write),
    note="method, mean and std of the images; a stride in the 1x1",
)
