"""The published code of SSQL (megvii-research/SSQL-ECCV2022), ``checkpoint.pth.tar``.

Its quantized ResNet has each norm inside its conv as ``bn_function``, and next to it a ``*_quantizer`` with a copy of
the weight and the last observed range. The moving average of BYOL and MoCo is a plain ResNet.

The format does not store the method, which is inferred from the predictor, the second encoder and the queue.
"""

from __future__ import annotations

from typing import Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.format import Format, FormatMatch, Layout, Names
from ssql_det.convert.metadata import Metadata, assume_metadata

NAMES = Names(
    stem_norm="conv1.bn_function",
    norm="layer{stage}.{block}.conv{conv}.bn_function",
    shortcut="layer{stage}.{block}.downsample",
    shortcut_norm="layer{stage}.{block}.downsample.bn_function",
)
_REQUIRED_KEYS = ("*conv1.bn_function.weight",)
# In this order: MoCo has all three, BYOL no queue, SimSiam no second encoder.
_METHODS = {"queue": "ssql-moco", "encoder_k.conv1.weight": "ssql-byol", "predictor.0.weight": "ssql-simsiam"}


def _read_metadata(content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
    return assume_metadata(architecture, next((method for key, method in _METHODS.items() if key in match.state), None))


SSQL_PUBLISHED = Format(
    name="ssql-published",
    title="the published SSQL code's: norms under bn_function, with *quantizer* entries",
    branches={
        "online": tuple(
            Layout(prefix, NAMES, required_keys=_REQUIRED_KEYS) for prefix in ("encoder_q.model.", "model.")
        ),
        "momentum": (Layout("encoder_k.", required_keys=_REQUIRED_KEYS),),
    },
    left_out={
        "*_quantizer.*": "a quantizer's state",
        "*.fc.*": "a projector or classifier",
        "predictor.*": "the predictor",
        "queue*": "MoCo's queue",
    },
    read_metadata=_read_metadata,
)
