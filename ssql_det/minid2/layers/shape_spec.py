"""The shape of a feature map, as far as it is known before the model runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
