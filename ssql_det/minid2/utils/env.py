"""The seed of everything that draws at random."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import torch

__all__ = ["seed_all_rng"]


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python, numpy and torch (its GPUs too); without a seed, with one from the operating system, logged."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
        logging.getLogger(__name__).info(f"No seed was asked for: drew {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)  # for the processes that this one starts
