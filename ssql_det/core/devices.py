"""The torch device that a config key or an option names, and what is fast on it: memory format, bfloat16."""

from __future__ import annotations

import logging

import torch

from ssql_det.core.errors import UserError, did_you_mean

AUTO = "auto"
_MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM CPUs
MEMORY_FORMAT_NAMES = (AUTO, *_MEMORY_FORMATS)
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


def choose_memory_format(name: str, device: torch.device, key: str) -> torch.memory_format:
    """How the channels of images and weights are stored: ``channels_last``, ``contiguous``, or what is faster.

    ``auto`` is channels last on the CPU, where it was faster for every network tried, and on a GPU, whose convolutions
    are made for it; contiguous on other devices. The format moves results in their last digits.

    >>> choose_memory_format("auto", torch.device("cpu"), "MEMORY_FORMAT")
    torch.channels_last
    """
    if name not in MEMORY_FORMAT_NAMES:
        hint, known = did_you_mean(name, MEMORY_FORMAT_NAMES), ", ".join(MEMORY_FORMAT_NAMES)
        raise UserError(f"{key} {name!r} is unknown{hint} (known: {known})")
    if name == AUTO:
        name = "channels_last" if device.type in ("cpu", "cuda") else "contiguous"
    return _MEMORY_FORMATS[name]


def warn_if_bfloat16_is_slow(device: torch.device, key: str) -> None:
    """Log a warning if ``device`` is a CPU that has no instructions for bfloat16; there it is slower than float32."""
    read_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # which an older torch does not have
    capabilities: dict[str, object] = read_capabilities()
    if device.type == "cpu" and capabilities and not any(map(capabilities.get, _BFLOAT16_INSTRUCTIONS)):
        _logger.warning("%s: this CPU has no bfloat16 instructions, so training is slower than in float32", key)
