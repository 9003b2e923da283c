"""torchvision's ResNets, whose names are the neutral ones. A plain state dict: RGB and a stride in the 3x3 by custom.

Does not carry: the method, the images' mean and std, any stride in a 1x1 conv.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.facts import customary
from ssql_det.convert.format import Format, Writer
from ssql_det.convert.layout import Layout
from ssql_det.convert.pytorch import as_pytorch
from ssql_det.core.saving import save_tensors


def write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    tensors, left_behind = as_pytorch(checkpoint)
    save_tensors(tensors, file)
    facts, custom = checkpoint.facts, customary(checkpoint.architecture)
    if facts.input is not None and custom.input is not None:
        images = facts.input if facts.input.channels == "RGB" else facts.input.turned()
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
