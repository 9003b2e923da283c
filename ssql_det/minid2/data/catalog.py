"""Catalogs of data sets by name: the function that loads each, and its metadata."""

from __future__ import annotations

import logging
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]

Names = list[str]  # an alias, because list is a method of the catalogs


class _DatasetCatalog(UserDict[str, Callable[[], Any]]):
    """The functions that load data sets, by name.

    >>> DatasetCatalog.register("my_set", lambda: [{"file_name": "1.jpg"}])
    >>> DatasetCatalog.get("my_set")
    [{'file_name': '1.jpg'}]
    >>> DatasetCatalog.remove("my_set")
    """

    def register(self, name: str, func: Callable[[], Any]) -> None:
        assert callable(func), "You must register a function with `DatasetCatalog.register`!"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]
        """Load a data set: usually a list of dicts, one for each image."""
        if name not in self:
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {', '.join(self)}")
        return self[name]()

    def list(self) -> Names:
        return [*self]

    def remove(self, name: str) -> None:
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __str__ = __repr__


_RENAMED = {
    "class_names": "thing_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    "stuff_class_names": "stuff_classes",
}


class Metadata(SimpleNamespace):
    """The metadata of a data set, as attributes, which cannot be changed once they are set.

    >>> Metadata().set(thing_classes=["person", "dog"]).thing_classes
    ['person', 'dog']
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:  # called only for missing attributes
        if key in _RENAMED:
            return getattr(self, _new_name(key))
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. "
            f"Available keys are {', '.join(self.__dict__)}."
        )

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _RENAMED:
            key = _new_name(key)
        try:
            before = getattr(self, key)
        except AttributeError:
            super().__setattr__(key, value)
            return
        assert before == value, (
            f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different value!\n"
            f"{before} != {value}"
        )

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy."""
        return self.__dict__.copy()

    def set(self, **kwargs: Any) -> Metadata:
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


class _MetadataCatalog(UserDict[str, Metadata]):
    """The :class:`Metadata` of data sets by name, created on first access."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        assert name, "a data set needs a name"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> Names:
        return [*self]

    def remove(self, name: str) -> None:
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __str__ = __repr__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()


def _new_name(key: str) -> str:
    log_first_n(logging.WARNING, f"Metadata '{key}' was renamed to '{_RENAMED[key]}'!", n=10)
    return _RENAMED[key]
