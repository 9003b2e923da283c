"""The convention that torchvision, timm and nearly every PyTorch ResNet share: RGB images, a stride in the 3x3 conv."""

from __future__ import annotations

from torch import Tensor

from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.core.errors import UserError

_TRAINED_WITH = "say which with --trained-with CONFIG.yaml, the config it was trained with"


def as_pytorch(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The backbone for a network of that convention, and what is left behind. BGR filters are turned, exactly."""
    facts = checkpoint.facts
    if checkpoint.architecture.is_bottleneck and facts.stride_in_1x1 is None:
        raise UserError(
            f"{checkpoint.called} does not say whether it strides in its 1x1 or its 3x3 convs; {_TRAINED_WITH}"
        )
    if checkpoint.architecture.is_bottleneck and facts.stride_in_1x1:
        raise UserError(
            f"{checkpoint.called} strides in its 1x1 convs, as MSRA's networks do, and torchvision's and timm's in the "
            "3x3: the same weights there are another network; convert it to detectron2 or ssql_det"
        )
    if facts.input is None:
        raise UserError(f"{checkpoint.called} does not say whether it takes RGB or BGR images; {_TRAINED_WITH}")
    tensors = dict(checkpoint.tensors)
    if facts.input.channels == "BGR":
        tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    return tensors, dict.fromkeys(checkpoint.detector, "a detector's, not of the backbone")
