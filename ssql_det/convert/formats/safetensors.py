"""A safetensors file with torchvision's names, and the metadata as JSON in its header.

It stores all of a checkpoint except a detector's other tensors, and cannot be used for a stride in the 1x1 conv.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.format import Format, FormatMatch, Layout, Writer
from ssql_det.convert.formats.torchvision import TORCHVISION, to_torchvision
from ssql_det.convert.metadata import METADATA_KEY, Metadata, assume_metadata, parse_metadata
from ssql_det.core.tensor_files import METADATA, write_safetensors


def _read_metadata(content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
    text = content.get(METADATA, {}).get(METADATA_KEY)
    return assume_metadata(architecture) if text is None else parse_metadata(json.loads(text), architecture)


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    tensors, left_behind = to_torchvision(checkpoint)
    metadata = checkpoint.metadata_dict()
    input_format = checkpoint.metadata.input
    if input_format is not None and input_format.channels == "BGR":
        metadata["input"] = vars(input_format.flip_channels())
    write_safetensors(tensors, {"format": "pt", METADATA_KEY: json.dumps(metadata)}, file)
    return left_behind


SAFETENSORS = Format(
    name="safetensors",
    title="safetensors under torchvision's names, of timm and of this project",
    branches={"online": (Layout(containers=("model",), required_keys=(METADATA,)),)},
    left_out=TORCHVISION.left_out,
    read_metadata=_read_metadata,
    writer=Writer((".safetensors",), _write),
    not_stored="a stride in the 1x1",
)
