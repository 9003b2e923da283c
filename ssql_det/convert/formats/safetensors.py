"""A safetensors file under torchvision's names. What is known about the network stands beside, as JSON.

Carries everything the neutral form has but a detector's other tensors and a stride in the 1x1.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import KEY, Checkpoint, described
from ssql_det.convert.facts import Facts, customary
from ssql_det.convert.files import METADATA
from ssql_det.convert.format import Format, Found, Writer
from ssql_det.convert.formats.torchvision import TORCHVISION
from ssql_det.convert.layout import Layout
from ssql_det.convert.pytorch import as_pytorch

_CODES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


def _facts(content: Any, found: Found, architecture: Architecture) -> Facts:
    text = content.get(METADATA, {}).get(KEY)
    return customary(architecture) if text is None else described(json.loads(text), architecture)


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    tensors, left_behind = as_pytorch(checkpoint)
    description = checkpoint.description()
    if checkpoint.facts.input is not None and checkpoint.facts.input.channels == "BGR":
        description["input"] = vars(checkpoint.facts.input.turned())
    _dump(tensors, {"format": "pt", KEY: json.dumps(description)}, file)
    return left_behind


def _dump(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: IO[bytes]) -> None:
    """The library's own ``save`` orders metadata anew each time, and takes twice the memory: the same bytes matter.

    A header's length, the header as JSON, padded, and the tensors' bytes, largest elements first.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {METADATA: metadata}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in ordered:
        file.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)


SAFETENSORS = Format(
    name="safetensors",
    title="safetensors under torchvision's names, timm's and ours",
    branches={"online": (Layout(containers=("model",), marks=(METADATA,)),)},
    left_out=TORCHVISION.left_out,
    facts=_facts,
    writer=Writer((".safetensors",), _write),
    note="a stride in the 1x1",
)
