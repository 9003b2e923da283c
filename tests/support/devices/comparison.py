"""Comparing the numbers of a device with the CPU's; shared by ``benchmarks/gpu.py`` and the tests of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CheckResult:
    """How far a device's numbers are from the CPU's. An error of NaN fails."""

    name: str
    error: float
    limit: float

    @property
    def is_kept(self) -> bool:
        return self.error <= self.limit

    def __str__(self) -> str:
        verdict = "kept" if self.is_kept else "EXCEEDED"
        return f"{self.name}: error {self.error:.2g} (limit {self.limit:g}, {verdict})"


Check = Callable[[torch.device], Iterable[CheckResult]]


def count_differences(found: Tensor, expected: Tensor) -> float:
    """The number of elements that are not equal to the last bit; infinity if type or shape differ."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return float("inf")
    found, expected = found.detach().cpu(), expected.detach().cpu()
    return float(((found != expected) & ~(found.isnan() & expected.isnan())).sum())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to the norm of ``expected``; infinity if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12)) if expected.numel() else 0.0


def largest_relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest :func:`relative_error` of the tensors; infinity if the names differ."""
    if found.keys() != expected.keys():
        return float("inf")
    return worst(relative_error(found[name], value) for name, value in expected.items())


def total_relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The :func:`relative_error` of all tensors together; infinity if the names differ."""
    if found.keys() != expected.keys():
        return float("inf")
    first, second = (
        torch.cat([each[name].detach().cpu().double().flatten() for name in expected]) for each in (found, expected)
    )
    return relative_error(first, second)


def worst(errors: Iterable[float]) -> float:
    """The largest error, where NaN is larger than any other; there must be at least one."""
    return float(torch.tensor([*errors], dtype=torch.float64).max())  # torch's maximum keeps NaN


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in float32 what a GPU would by default compute in TF32, which has 10 bits of mantissa."""
    precision, is_allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = is_allowed
