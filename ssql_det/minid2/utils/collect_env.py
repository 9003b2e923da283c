"""A table of the environment, for the log."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from tabulate import tabulate  # type: ignore[import-untyped]

__all__ = ["collect_env_info"]

PACKAGES = ("numpy", "torchvision", "fvcore", "iopath", "pycocotools", "pillow", "opencv-python-headless")


def collect_env_info() -> str:
    """Versions, GPUs and torch's build configuration."""
    root = os.path.dirname(os.path.dirname(__file__))
    rows = [
        ("sys.platform", sys.platform),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"minid2 @{root}"),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("GPU available", str(torch.cuda.is_available())),
    ]
    rows += [(f"GPU {index}", torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
    rows += [(package, _version(package)) for package in PACKAGES]
    return f"{tabulate(rows)}\n{torch.__config__.show()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not found"
