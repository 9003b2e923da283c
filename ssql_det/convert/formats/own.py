"""This project's own layout, ``.pth``: everything the neutral form has, and room for both branches of a training.

::

    {"ssql_det": {"version": 1, "arch": "resnet18", "method": "ssql-simsiam", "input": {...}, ...},
     "online": {"conv1.weight": tensor, ...},      # torchvision's names
     "momentum": {"conv1.weight": tensor, ...},    # where the method has a moving average
     "detector": {...},                            # the rest of a detector, Detectron2's names
     "heads": {...}, "resume": {...}}              # of a training: projector, predictor, queue; optimizer, step

A training writes version 2, of any network: ``"backbone": {"name": "timm/mobilenetv2_050"}`` stands for ``arch``, and
tensors are under that network's own names. Of a ResNet it is read here as well; others have no neutral form.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import BRANCHES, METADATA_KEY, Checkpoint, Metadata, described
from ssql_det.convert.format import Format, Found, Layout, Part, Writer, as_tensor
from ssql_det.core.tensor_files import save_tensors


def _facts(content: Any, found: Found, architecture: Architecture) -> Metadata:
    return replace(described(content.get(METADATA_KEY), architecture), branch=found.branch)


def _detector(content: Any, leftover: dict[str, Any]) -> list[Part]:
    parts = []
    for name, value in content.get("detector", {}).items():
        tensor = as_tensor(value)
        if not isinstance(name, str) or tensor is None:
            raise ValueError(f"its detector has {reprlib.repr(name)}, which is no tensor's name")
        parts.append(Part(name, name, tensor))
    return parts


def _write(checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    content: dict[str, Any] = {
        METADATA_KEY: checkpoint.metadata_dict(),
        checkpoint.metadata.branch: dict(checkpoint.tensors),
    }
    if checkpoint.detector:
        content["detector"] = dict(checkpoint.detector)
    save_tensors(content, file)
    return {}


OWN = Format(
    name="ssql_det",
    title="this project's own: the network, both its branches, and what is known about it",
    branches={branch: (Layout(containers=(branch,), marks=(METADATA_KEY,)),) for branch in BRANCHES},
    metadata=_facts,
    rest=_detector,
    writer=Writer((".pth",), _write),
)
