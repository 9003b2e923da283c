"""The device that a config names: the one that is there, or a refusal that names the key."""

from __future__ import annotations

import logging

import torch

from ssql_det.core.errors import UserError

_logger = logging.getLogger(__name__)


def resolve_device(name: str, key: str) -> torch.device:
    """``cuda``, the default of every config, is the CPU where there is no GPU, and a log line says so.

    >>> resolve_device("cuda", "MODEL.DEVICE")
    device(type='cpu')
    """
    if name == "cuda":
        if torch.cuda.is_available():
            return torch.device(name)
        _logger.warning("there is no GPU here: %s is cpu instead of cuda", key)
        return torch.device("cpu")
    try:
        torch.zeros(1, device=name).item()  # "meta" is a device that has no values
    except (AssertionError, RuntimeError) as failure:
        reason = str(failure).splitlines()[0]
        raise UserError(f"{key} {name!r} is not here ({reason}); set it to cpu, or to cuda") from None
    return torch.device(name)
