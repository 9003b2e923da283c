"""Batching images of several sizes, padded at the right and bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ImageList:
    """A padded batch ``tensor`` [N, ..., H, W], and in ``image_sizes`` the (height, width) of each image.

    >>> ImageList.from_tensors([torch.zeros(3, 20, 30), torch.zeros(3, 25, 10)], size_divisibility=32).tensor.shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pad to the largest height and width, rounded up; ``padding_constraints`` can require a square."""
        assert tensors
        assert all(each.shape[:-2] == tensors[0].shape[:-2] for each in tensors)
        sizes = [(each.shape[-2], each.shape[-1]) for each in tensors]
        constraints = padding_constraints or {}
        square = constraints.get("square_size", 0)
        divisor = max(1, constraints.get("size_divisibility", size_divisibility))
        largest = [square] * 2 if square > 0 else [max(sides) for sides in zip(*sizes, strict=True)]
        padded = [-(-side // divisor) * divisor for side in largest]
        batch = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], *padded), pad_value)
        for index, image in enumerate(tensors):  # not by iterating over the batch: an image may require a gradient
            batch[index, ..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch, sizes)
