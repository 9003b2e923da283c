"""Questions to the process group; without one, the answers of a single process."""

from __future__ import annotations

import torch.distributed as dist


def get_world_size() -> int:
    return dist.get_world_size() if _is_grouped() else 1


def get_rank() -> int:
    return dist.get_rank() if _is_grouped() else 0


def is_main_process() -> bool:
    return get_rank() == 0


def synchronize() -> None:
    """Wait for all processes."""
    if get_world_size() > 1:
        dist.barrier()


def _is_grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
