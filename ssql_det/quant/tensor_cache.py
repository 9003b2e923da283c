"""``TensorCache``: what was computed from a tensor, kept until the tensor changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

from ssql_det.quant.affine import tensor_version

T = TypeVar("T")


class TensorCache(Generic[T]):
    """A value computed from a tensor, one for each key, such as a bit-width; use key 0 if there is only one value.

    It is computed again for another tensor, and after a change in place. Equal keys must mean equal computations.

    >>> cache = TensorCache()
    >>> x = torch.tensor([1.0, 2.0])
    >>> cache.get(x, key=0, compute=x.sum), cache.get(x, key=1, compute=x.prod)
    (tensor(3.), tensor(2.))
    >>> cache.get(x.mul_(2), key=0, compute=x.sum)
    tensor(6.)
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], tuple[int, int], T]] = {}

    def get(self, tensor: Tensor, key: int, compute: Callable[[], T]) -> T:
        entry, version = self._entries.get(key), tensor_version(tensor)
        # The version alone is not enough: a new tensor may have the memory of one that is gone.
        if entry is None or entry[0]() is not tensor or entry[1] != version:
            self._entries[key] = entry = (weakref.ref(tensor), version, compute())
        return entry[2]
