"""The published code of SSQL (megvii-research/SSQL-ECCV2022), ``checkpoint.pth.tar``.

Its quantized ResNet keeps each norm inside its conv as ``bn_function`` and has a ``*_quantizer`` beside it, with the
weight again and the range observed last. The moving average of BYOL and MoCo is a plain ResNet.

Does not carry: which method it was. That is told from the predictor, the second encoder and the queue.
"""

from __future__ import annotations

from typing import Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import Metadata, customary
from ssql_det.convert.format import Format, Found, Layout, Names

NAMES = Names(
    stem_norm="conv1.bn_function",
    norm="layer{stage}.{block}.conv{conv}.bn_function",
    shortcut="layer{stage}.{block}.downsample",
    shortcut_norm="layer{stage}.{block}.downsample.bn_function",
)
_MARKS = ("*conv1.bn_function.weight",)


def _facts(content: Any, found: Found, architecture: Architecture) -> Metadata:
    """Pretraining has a queue (MoCo), or a second encoder (BYOL), or a predictor alone (SimSiam)."""
    signs = {"queue": "ssql-moco", "encoder_k.conv1.weight": "ssql-byol", "predictor.0.weight": "ssql-simsiam"}
    return customary(architecture, next((method for sign, method in signs.items() if sign in found.state), None))


PUBLISHED = Format(
    name="ssql-published",
    title="the published SSQL code's: norms under bn_function, quantizers beside",
    branches={
        "online": tuple(Layout(prefix, NAMES, marks=_MARKS) for prefix in ("encoder_q.model.", "model.")),
        "momentum": (Layout("encoder_k.", marks=_MARKS),),
    },
    left_out={
        "*_quantizer.*": "a quantizer's state",
        "*.fc.*": "a projector or classifier",
        "predictor.*": "the predictor",
        "queue*": "MoCo's queue",
    },
    metadata=_facts,
)
