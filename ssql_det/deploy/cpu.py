"""The CPU that an exported file runs on: its name, and the instructions that decide how it computes integers."""

from __future__ import annotations

import functools
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_NAMES, _FLAGS = ("model name", "Model", "Hardware"), ("flags", "Features")  # on x86 and on ARM
_KNOWN_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "sve"),
)
_VNNI = {"avx_vnni", "avx512_vnni"}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CPU:
    """A name, and those of the flags that matter to inference; none where the system does not tell them."""

    name: str
    flags: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, machine: str = "") -> CPU:
        """From the content of /proc/cpuinfo.

        >>> CPU.parse("model name\\t: EPYC\\nflags\\t\\t: fpu avx2 avx512_vnni\\n")
        CPU(name='EPYC', flags=('avx2', 'avx512_vnni'))
        """
        pairs = [line.partition(":") for line in text.splitlines()]
        values = {key.strip(): value.strip() for key, _, value in reversed(pairs)}  # those of the first core
        name = next((values[key] for key in _NAMES if values.get(key)), machine)
        flags = next((values[key].split() for key in _FLAGS if key in values), [])
        return cls(name, tuple(flag for flag in _KNOWN_FLAGS if flag in flags))

    @property
    def saturates(self) -> bool:
        """Whether the fast instructions add products of unsigned and signed bytes in pairs of 16 bits, which saturate:
        on x86 without VNNI."""
        return "avx2" in self.flags and not _VNNI & {*self.flags}

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.flags)})" if self.flags else self.name


@functools.cache
def describe_cpu() -> CPU:
    """The CPU of this machine."""
    machine = platform.machine()  # platform.processor() would start a process
    try:
        return CPU.parse(_CPUINFO.read_text(errors="replace"), machine)
    except OSError:  # not Linux
        return CPU(machine, ())


@functools.cache
def warn_without_vnni() -> None:
    """Log one warning where integers are slow, or not exact."""
    if describe_cpu().saturates:
        _logger.warning(
            "this CPU, %s, has no VNNI: integers gain little speed, and if a layer is called several times, as the RPN "
            "of an FPN, sums of 8-bit products may saturate, so that detections differ; see docs/deployment.md",
            describe_cpu().name,
        )


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
