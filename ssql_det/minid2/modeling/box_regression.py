"""Boxes as what is to be done to other boxes: shift the centre, scale the sides (R-CNN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Box2BoxTransform"]

_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)  # no box grows more than from a small anchor to a whole image


class Box2BoxTransform:
    """Deltas (dx, dy, dw, dh): the centre moves by dx widths and dy heights, the sides grow by exp(dw) and exp(dh).

    ``weights`` multiply the deltas; Fast R-CNN chose them to give unit variance.

    >>> transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    >>> transform.apply_deltas(transform.get_deltas(proposals, targets), proposals)  # the targets
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """What turns N boxes into N targets: [N, 4]."""
        centres, sides = _centres_and_sides(src_boxes)
        target_centres, target_sides = _centres_and_sides(target_boxes)
        weights = src_boxes.new_tensor(self.weights)
        shifts = weights[:2] * (target_centres - centres) / sides
        growths = weights[2:] * torch.log(target_sides / sides)
        assert (sides[:, 0] > 0).all(), "Input boxes to Box2BoxTransform are not valid!"
        return torch.cat((shifts, growths), dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """N boxes changed in k ways each, deltas and result [N, k * 4]; in float32."""
        deltas = deltas.float()
        centres, sides = (each[:, None] for each in _centres_and_sides(boxes.to(deltas.dtype)))
        scaled = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4) / deltas.new_tensor(self.weights)
        new_centres = scaled[..., :2] * sides + centres
        half = 0.5 * (torch.exp(scaled[..., 2:].clamp(max=self.scale_clamp)) * sides)
        return torch.cat((new_centres - half, new_centres + half), dim=-1).reshape(deltas.shape)


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * sides, sides
