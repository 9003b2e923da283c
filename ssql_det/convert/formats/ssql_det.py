"""This project's own format, ``.pth``: everything that a checkpoint has, and both branches of a training.

::

    {"ssql_det": {"version": 1, "arch": "resnet18", "method": "ssql-simsiam", "input": {...}, ...},
     "online": {"conv1.weight": tensor, ...},      # torchvision's names
     "momentum": {"conv1.weight": tensor, ...},    # if the method has a moving average
     "detector": {...},                            # the other tensors of a detector, with Detectron2's names
     "heads": {...}, "resume": {...}}              # of a training: projector, predictor, queue; optimizer, step

``pretrain`` writes version 2, for any network: it has ``"backbone": {"name": "timm/mobilenetv2_050"}`` instead of
``arch``, and the tensors have that network's own names. Of these, only ResNets are read here.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.format import DetectorTensor, Format, FormatMatch, Layout, Writer, as_tensor
from ssql_det.convert.metadata import BRANCHES, METADATA_KEY, Metadata, parse_metadata
from ssql_det.core.tensor_files import save_tensors


def _read_metadata(content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
    return replace(parse_metadata(content.get(METADATA_KEY), architecture), branch=match.branch)


def _find_detector_tensors(content: Any, others: dict[str, Any]) -> list[DetectorTensor]:
    found = []
    for name, value in content.get("detector", {}).items():
        tensor = as_tensor(value)
        if not isinstance(name, str) or tensor is None:
            raise ValueError(f"{reprlib.repr(name)} in its detector is not a tensor with a name")
        found.append(DetectorTensor(name, name, tensor))
    return found


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    content: dict[str, Any] = {METADATA_KEY: checkpoint.metadata_dict()}
    content[checkpoint.metadata.branch] = dict(checkpoint.tensors)
    if checkpoint.detector:
        content["detector"] = dict(checkpoint.detector)
    save_tensors(content, file)
    return {}


SSQL_DET = Format(
    name="ssql_det",
    title="this project's own: the network, both its branches, and what is known about it",
    branches={branch: (Layout(containers=(branch,), required_keys=(METADATA_KEY,)),) for branch in BRANCHES},
    read_metadata=_read_metadata,
    find_detector_tensors=_find_detector_tensors,
    writer=Writer((".pth",), _write),
)
