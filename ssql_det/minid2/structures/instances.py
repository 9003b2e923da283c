"""The instances of one image: named fields of equal length, indexed together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch


class Instances:
    """Fields such as ``gt_boxes``, ``pred_masks``, ``scores``; attributes that begin with ``_`` are not fields.

    >>> instances = Instances((480, 640), scores=torch.tensor([0.9, 0.2]))
    >>> len(instances[instances.scores > 0.5])
    1
    """

    _image_size: tuple[int, int]
    _fields: dict[str, Any]

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)"""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:  # "_fields" is missing while an object is copied
            raise AttributeError(f"the instances have no field '{name}'")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        if self._fields:
            assert len(self) == len(value), f"a field of length {len(value)} in Instances of length {len(self)}"
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The dict of fields, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """Move every field that has a ``to`` method."""
        moved = {
            name: value.to(*args, **kwargs) if hasattr(value, "to") else value for name, value in self._fields.items()
        }
        return Instances(self._image_size, **moved)

    def __getitem__(self, item: Any) -> Instances:
        """Index by an integer, a slice, or a vector of integers or booleans."""
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"index {item} of {len(self)} instances")
            item = slice(item, None, len(self))  # keeps the dimension
        return Instances(self._image_size, **{name: value[item] for name, value in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without a field have no length")

    def __iter__(self) -> Any:
        raise NotImplementedError("Instances cannot be iterated: index them, or iterate over a field")

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """Concatenate instances of one image."""
        assert instance_lists
        assert all(isinstance(each, Instances) for each in instance_lists)
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        if not isinstance(first.image_size, torch.Tensor):
            assert all(each.image_size == first.image_size for each in instance_lists)
        fields = {name: _cat([each.get(name) for each in instance_lists]) for name in first.get_fields()}
        return Instances(first.image_size, **fields)

    def __repr__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        name = type(self).__name__
        return f"{name}(num_instances={len(self)}, image_height={height}, image_width={width}, fields=[{fields}])"


def _cat(values: list[Any]) -> Any:
    kind = type(values[0])
    if issubclass(kind, torch.Tensor):
        return torch.cat(values, dim=0)
    if issubclass(kind, list):
        return list(itertools.chain(*values))
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"Unsupported type {kind} for concatenation")
