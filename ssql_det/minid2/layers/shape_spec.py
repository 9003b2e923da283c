"""The shape that a part of a model puts out, as far as it is known before it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
