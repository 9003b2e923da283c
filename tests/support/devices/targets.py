"""Where and how a network computes: its device, its floating point type and its memory format."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Target:
    device: torch.device
    dtype: torch.dtype = torch.float64
    memory_format: torch.memory_format = torch.contiguous_format

    def place(self, network: nn.Module) -> nn.Module:
        """A copy of the network."""
        return copy.deepcopy(network).to(self.device, self.dtype, memory_format=self.memory_format)

    def place_images(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype, memory_format=self.memory_format)


FLOAT64_ON_CPU = Target(torch.device("cpu"))


def each_memory_format(device: torch.device, dtype: torch.dtype) -> Iterator[Target]:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        yield Target(device, dtype, memory_format)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
