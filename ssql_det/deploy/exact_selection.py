"""Select boxes in torch as an exported file does, where torch and torchvision leave the selection open or round it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.ops import nms


@contextmanager
def exact_selection() -> Iterator[None]:
    """Inside, ties are broken by index (:class:`TiesByIndex`), and NMS of several classes or levels is exact.

    torchvision shifts the boxes of each class by a multiple of the image's size, so that one NMS serves all classes.
    This rounds the boxes: with 80 classes, in about one image of a hundred another box is suppressed.
    """
    boxes_module: Any = torchvision.ops.boxes  # where both engines look it up
    original = boxes_module.batched_nms
    boxes_module.batched_nms = batched_nms
    try:
        with TiesByIndex():
            yield
    finally:
        boxes_module.batched_nms = original


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """As torchvision's, but each class is a call of NMS with the boxes as they are.

    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9]])
    >>> batched_nms(boxes, torch.tensor([0.5, 0.7, 0.6]), torch.tensor([0, 1, 1]), 0.5)
    tensor([1, 0])
    """
    of_each_class = [(idxs == each).nonzero()[:, 0] for each in idxs.unique()]
    kept = [chosen[nms(boxes[chosen], scores[chosen], iou_threshold)] for chosen in of_each_class]
    by_index = torch.cat([idxs.new_empty(0, dtype=torch.int64), *kept]).sort().values
    return by_index[scores[by_index].sort(descending=True, stable=True).indices]


class TiesByIndex(TorchFunctionMode):
    """Inside, ``sort`` and ``topk`` put the lower index first where values are equal, as those of ONNX do.

    torch leaves their order open, and so which of several boxes with the same score the engine takes: on an even
    background many scores are the same.

    >>> with TiesByIndex():
    ...     torch.tensor([1.0, 2.0, 1.0, 2.0]).topk(3)[1]
    tensor([1, 3, 0])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "topk":
            return self._topk(*args, **(kwargs or {}))
        if name == "sort":
            return self._sort(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
        return torch.sort(x, dim=dim, descending=descending, stable=True)

    @classmethod
    def _topk(cls, x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        values, indices = (each.narrow(dim, 0, k) for each in cls._sort(x, dim, descending=largest))
        return torch.return_types.topk((values, indices))
