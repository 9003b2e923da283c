"""The torch device that a config key or an option names."""

from __future__ import annotations

import logging

import torch

from ssql_det.core.errors import UserError

_logger = logging.getLogger(__name__)


def resolve_device(name: str, key: str) -> torch.device:
    """The device called ``name``; ``cuda``, the default of every config, becomes the CPU on a machine without a GPU.

    ``key`` is the config key or option that has the name; messages begin with it.

    >>> resolve_device("cpu", "MODEL.DEVICE")
    device(type='cpu')
    """
    if name == "cuda":
        if torch.cuda.is_available():
            return torch.device(name)
        _logger.warning("this machine has no GPU: %s cuda is replaced by cpu", key)
        return torch.device("cpu")
    try:
        torch.zeros(1, device=name).item()  # fails on "meta", whose tensors have no values
    except (AssertionError, RuntimeError) as failure:
        reason = str(failure).splitlines()[0]
        raise UserError(f"{key} {name!r} is not available ({reason}); set it to cpu or cuda") from None
    return torch.device(name)
