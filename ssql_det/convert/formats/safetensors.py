"""A safetensors file under torchvision's names. What is known about the network stands beside, as JSON.

Carries everything the neutral form has but a detector's other tensors and a stride in the 1x1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import METADATA_KEY, Checkpoint, Metadata, customary, described
from ssql_det.convert.format import Format, Found, Layout, Writer
from ssql_det.convert.formats.torchvision import TORCHVISION, as_pytorch
from ssql_det.core.tensor_files import METADATA, write_safetensors


def _facts(content: Any, found: Found, architecture: Architecture) -> Metadata:
    text = content.get(METADATA, {}).get(METADATA_KEY)
    return customary(architecture) if text is None else described(json.loads(text), architecture)


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    tensors, left_behind = as_pytorch(checkpoint)
    description = checkpoint.metadata_dict()
    if checkpoint.metadata.input is not None and checkpoint.metadata.input.channels == "BGR":
        description["input"] = vars(checkpoint.metadata.input.flip_channels())
    write_safetensors(tensors, {"format": "pt", METADATA_KEY: json.dumps(description)}, file)
    return left_behind


SAFETENSORS = Format(
    name="safetensors",
    title="safetensors under torchvision's names, timm's and ours",
    branches={"online": (Layout(containers=("model",), marks=(METADATA,)),)},
    left_out=TORCHVISION.left_out,
    metadata=_facts,
    writer=Writer((".safetensors",), _write),
    note="a stride in the 1x1",
)
