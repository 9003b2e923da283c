"""A pretrained network from its checkpoint: the backbone of any file, and the heads where this project trained them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ssql_det.backbones import build_backbone
from ssql_det.convert import Checkpoint, examine_content, load_backbone, open_weights
from ssql_det.convert.architecture import COUNTER
from ssql_det.convert.checkpoint import KEY
from ssql_det.convert.tensors import as_tensor, faults, is_spread
from ssql_det.core.errors import UserError, printable
from ssql_det.ssl.heads import mlp_of
from ssql_det.ssl.method import Encoder

_PROJECTOR, _PREDICTOR, _TARGET = "encoder.projector.", "predictor.", "momentum.network.projector."


@dataclass(frozen=True, eq=False)
class Trained:
    """``predictor(encoder(view))`` is what was held against ``target(other view)``, which is the encoder itself or its
    moving average. Without heads, projector and predictor change nothing.

    >>> trained = read_trained("runs/ssql/checkpoint.pth")
    >>> trained.has_heads, trained.source.facts.method
    (True, 'SSQL')
    """

    source: Checkpoint
    encoder: Encoder
    predictor: nn.Module
    target: Encoder
    has_heads: bool


def read_trained(path: str | os.PathLike[str]) -> Trained:
    """All of a file that a network's features pass through, in evaluation mode; of foreign files the backbone."""
    path = os.path.expanduser(path)
    content = open_weights(path)
    source = examine_content(content, path)
    source.coverage.check(path)
    heads = content.get("heads", {}) if KEY in content else {}
    if not heads:
        encoder = Encoder(_backbone(source), nn.Identity()).eval()
        return Trained(source, encoder, nn.Identity(), encoder, has_heads=False)
    try:
        encoder = target = Encoder(_backbone(source), mlp_of(_below(_PROJECTOR, heads))).eval()
        predictor = mlp_of(found).eval() if (found := _below(_PREDICTOR, heads)) else nn.Identity()
        average = _below(_TARGET, heads)
        if average:
            moving = examine_content(content, path, branch="momentum")
            moving.coverage.check(path)
            target = Encoder(_backbone(moving), mlp_of(average)).eval()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as failure:
        reason = printable(" ".join(str(failure).split()), 200)
        raise UserError(f"{path}: its projector and predictor are not understood ({reason}); get it anew") from failure
    return Trained(source, encoder, predictor, target, has_heads=True)


def _backbone(source: Checkpoint) -> nn.Module:
    backbone = build_backbone(source.architecture.name).module
    load_backbone(backbone, source)
    return backbone


def _below(prefix: str, heads: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one head under their names in it, fit to be computed with."""
    found = {}
    for name, value in heads.items():
        if name.startswith(prefix):
            tensor = as_tensor(value)
            if tensor is None or is_spread(tensor):
                raise ValueError(f"{name} is no tensor, or claims more elements than the file has")
            found[name.removeprefix(prefix)] = tensor
    for name, fault in faults(each for each in found.items() if not each[0].endswith(COUNTER)).items():
        raise ValueError(f"{prefix}{name} {fault}")
    return found
