"""The errors of a block's outputs, in units of the float outputs.

An output is a tensor, or a list of tensors of several levels; a tuple has several outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssql_det.ptq.blocks import list_tensors
from ssql_det.ptq.records import Records


def compute_errors(outputs: Any, targets: Any) -> list[tuple[Tensor, int]]:
    """For each output the mean squared error, over all levels of a list, and the number of channels."""
    found = []
    for output, target in zip(_split_outputs(outputs), _split_outputs(targets), strict=True):
        squares = [(x - y).square() for x, y in zip(output, target, strict=True)]
        count = sum(x.numel() for x in squares)
        found.append((torch.stack([x.sum() for x in squares]).sum() / count, _count_channels(output[0])))
    return found


def _split_outputs(value: Any) -> list[list[Tensor]]:
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
            for output in _split_outputs(group.outputs)
        ]
        totals = [(a + c, b + d) for (a, b), (c, d) in zip(totals, parts, strict=True)] if totals else parts
    return [square_sum / count for square_sum, count in totals]
