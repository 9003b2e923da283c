"""The scale of the least error for each output channel of a weight, among parts of the one that clips nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssql_det.quant.affine import computing_type, largest_magnitude, version_of

PARTS = 100

OnGrid = Callable[[Tensor, Tensor, int], Tensor]  # of a weight, the scales of its channels, and bits


class ScaleSearch:
    """Searched once for a weight and a width: as long as the weight is what it was, the answer is kept.

    >>> search = ScaleSearch(on_grid, axis=0, exponent=2.0)
    >>> search(conv.weight, bits=2).shape
    torch.Size([64, 1, 1, 1])
    """

    def __init__(self, on_grid: OnGrid, axis: int, exponent: float) -> None:
        self._on_grid, self._axis, self._exponent = on_grid, axis, exponent
        self._found: dict[int, tuple[tuple[int, int], Tensor]] = {}

    @torch.no_grad()
    def __call__(self, weight: Tensor, bits: int) -> Tensor:
        version = version_of(weight)
        if bits not in self._found or self._found[bits][0] != version:
            self._found[bits] = (version, self._search(weight.detach().to(computing_type(weight)), bits))
        return self._found[bits][1]

    def _search(self, weight: Tensor, bits: int) -> Tensor:
        """Of equally good ones the largest, which clips least."""
        others = [dim for dim in range(weight.ndim) if dim != self._axis % weight.ndim]
        whole = largest_magnitude(weight, self._axis) / ((2**bits - 1) / 2)
        best, least = whole, None
        for part in range(PARTS, 0, -1):
            scale = whole * (part / PARTS)
            error = (self._on_grid(weight, scale, bits) - weight).abs().pow(self._exponent).sum(others, keepdim=True)
            if least is None:
                least = error
                continue
            is_less = error < least
            best, least = torch.where(is_less, scale, best), torch.where(is_less, error, least)
        return best
