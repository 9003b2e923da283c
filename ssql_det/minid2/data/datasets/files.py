"""Paths of annotation files, with an error that says where data sets are expected."""

from __future__ import annotations

import os

ROOT_VARIABLE = "DETECTRON2_DATASETS"


def root_folder() -> str:
    """The folder of the built-in data sets."""
    return os.path.expanduser(os.getenv(ROOT_VARIABLE, "datasets"))


def existing(path: str | os.PathLike[str]) -> str:
    """The path, if the file exists."""
    if os.path.isfile(path):
        return os.fspath(path)
    value = os.environ.get(ROOT_VARIABLE)
    now = "is not set, which means ./datasets" if value is None else f"is '{value}'"
    raise FileNotFoundError(
        f"no annotations at {os.fspath(path)}: put the data set there, or let ${ROOT_VARIABLE} name the folder of "
        f"the built-in data sets before the program starts (now it {now})"
    )
