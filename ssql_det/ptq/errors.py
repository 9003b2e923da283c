"""The errors of a block's outputs, in units of the float outputs.

An output is a tensor, or a list of tensors of several levels; a tuple has several outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssql_det.ptq.blocks import list_tensors
from ssql_det.ptq.records import Records


@dataclass(frozen=True)
class BlockResult:
    """Errors are relative to the mean square of the float outputs, on the images that were kept for that."""

    name: str
    grid: str  # of the weights: mse or centred
    before: float  # with nearest rounding, and steps as calibrated
    after: float
    is_kept: bool  # whether the learned rounding and steps are used
    has_no_gradient: bool = False  # of a weighted method: its errors are those without weights

    def __str__(self) -> str:
        errors = f"error {self.before:.2g} -> {self.after:.2g}"
        if self.has_no_gradient:
            errors += " without weights, as the loss has no gradient here"
        return f"{self.name}: {errors}, {self.grid}" if self.is_kept else f"{self.name}: left as it was ({errors})"


def compute_errors(outputs: Any, targets: Any, weights: Any = None) -> list[tuple[Tensor, int]]:
    """For each output the mean squared error, over all levels of a list, and the number of channels.

    ``weights``, one for each element, are those of the squares; ``None``: they are 1.
    """
    found = []
    parts = [split_outputs(outputs), split_outputs(targets)] + ([] if weights is None else [split_outputs(weights)])
    for output, target, *factors in zip(*parts, strict=True):
        squares = [(x - y).square() for x, y in zip(output, target, strict=True)]
        for each in factors:
            squares = [square * weight for square, weight in zip(squares, each, strict=True)]
        count = sum(x.numel() for x in squares)
        found.append((torch.stack([x.sum() for x in squares]).sum() / count, _count_channels(output[0])))
    return found


def split_outputs(value: Any) -> list[list[Tensor]]:
    """The tensors of each output: a tuple has several outputs, a list is one output at several levels."""
    return [list_tensors(each) for each in value] if isinstance(value, tuple) else [list_tensors(value)]


def _count_channels(x: Tensor) -> int:
    return x.shape[1] if x.ndim == 4 else x.shape[-1]


def compute_powers(records: Records) -> list[Tensor]:
    """The mean square of each float output."""
    totals: list[tuple[Tensor, int]] = []
    for group in records.groups:
        parts = [
            (torch.stack([x.square().sum() for x in output]).sum(), sum(x.numel() for x in output))
            for output in split_outputs(group.outputs)
        ]
        totals = [(a + c, b + d) for (a, b), (c, d) in zip(totals, parts, strict=True)] if totals else parts
    return [square_sum / count for square_sum, count in totals]
