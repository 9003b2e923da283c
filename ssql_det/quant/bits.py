"""Bit-widths of weights and activations as values, and schedules that give the bit-widths of each training step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ssql_det.core.errors import UserError, printable

MIN_BITS, MAX_BITS = 2, 16  # limits of the bit-width of weights and of activations

_INTEGER = re.compile(r"\d{1,4}")
_PATTERNS = (  # of 4w4a, and of W4A4 as in much of the literature
    re.compile(r"(?:(?P<weight>\d{1,4})w)?(?:(?P<act>\d{1,4})a)?"),
    re.compile(r"(?:w(?P<weight>\d{1,4}))?(?:a(?P<act>\d{1,4}))?"),
)


@dataclass(frozen=True)
class Bits:
    """The bit-width of the weights and that of the activations; ``None`` means float.

    >>> Bits(4, 4) == Bits.parse("4w4a"), str(Bits(8, None)), Bits.parse("FP")
    (True, '8w', Bits(weight=None, act=None))
    """

    weight: int | None
    act: int | None

    FP: ClassVar[Bits]

    def __post_init__(self) -> None:
        for name, bits in (("weight", self.weight), ("activation", self.act)):
            if bits is not None and not _is_valid(bits):
                raise UserError(f"{name} bits must be {MIN_BITS} to {MAX_BITS}, or None for float; got {bits!r}")

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read ``FP``, ``4w4a`` (or ``w4a4``), ``8w`` (float activations) or ``6a`` (float weights), in upper or lower
        case."""
        lowered = text.strip().lower()
        if lowered == "fp":
            return cls.FP
        for pattern in _PATTERNS:
            match = pattern.fullmatch(lowered)
            if match and lowered:
                try:
                    return cls(*(int(bits) if bits else None for bits in match.group("weight", "act")))
                except UserError as error:
                    raise UserError(f"{error} in {text!r}") from None
        quoted = printable(text, 40)
        raise UserError(f"cannot read bits {quoted!r}; write FP, 4w4a, 8w (float activations) or 6a (float weights)")

    def __str__(self) -> str:
        weight = f"{self.weight}w" if self.weight else ""
        act = f"{self.act}a" if self.act else ""
        return weight + act or "FP"


def _is_valid(bits: object) -> bool:
    return isinstance(bits, int) and not isinstance(bits, bool) and MIN_BITS <= bits <= MAX_BITS


Bits.FP = Bits(None, None)


def parse_bit_widths(text: str) -> list[Bits]:
    """Read bit-widths between commas: ``FP``, ``8`` (of weights and activations), ``2w4a``; repeated ones count once.

    >>> [str(bits) for bits in parse_bit_widths("FP,8,2w4a")]
    ['FP', '8w8a', '2w4a']
    """
    parts = [part.strip() for part in text.split(",")]
    bit_widths = [Bits(int(part), int(part)) if _INTEGER.fullmatch(part) else Bits.parse(part) for part in parts]
    return list(dict.fromkeys(bit_widths))


def format_bits(bits: Bits, overrides: Mapping[str, Bits] | None = None) -> str:
    """Name a bit-width together with the overrides of parts of the network.

    >>> format_bits(Bits(4, 4), {"layer1.*": Bits(8, 8)})
    '4w4a, layer1.* at 8w8a'
    """
    return ", ".join([str(bits), *(f"{pattern} at {override}" for pattern, override in (overrides or {}).items())])


class BitsSchedule(Protocol):
    """Returns the bit-widths of a training step from the index of the step, which counts from 0."""

    @property
    def bounds(self) -> tuple[Bits, ...]:
        """The lowest and the highest bit-widths that occur."""

    def __call__(self, step: int) -> Bits: ...


@dataclass(frozen=True)
class FixedBits:
    """The same bits at every step.

    >>> FixedBits(Bits(4, 4))(step=7)
    Bits(weight=4, act=4)
    """

    bits: Bits

    @property
    def bounds(self) -> tuple[Bits, ...]:
        """The only bit-widths that occur."""
        return (self.bits,)

    def __call__(self, step: int) -> Bits:
        return self.bits


@dataclass(frozen=True)
class SampledBits:
    """Random bits at every step, uniform in closed intervals; the defaults are SSQL's.

    A pure function of ``(seed, step)``: every rank and every resumed run draws the same bits. Weights and activations
    get independent bits; with ``shared=True``, which needs equal intervals, they get the same bits. With several
    ``draws`` the least of them counts, which skews the bits towards few.

    >>> SampledBits(seed=0)(step=7) == SampledBits(seed=0)(step=7)
    True
    """

    seed: int
    weight: tuple[int, int] = (2, 8)
    act: tuple[int, int] = (4, 8)
    shared: bool = False
    draws: int = 1

    def __post_init__(self) -> None:
        for name, (low, high) in (("weight", self.weight), ("act", self.act)):
            if not (_is_valid(low) and _is_valid(high)):
                raise UserError(
                    f"SampledBits.{name} must be integers from {MIN_BITS} to {MAX_BITS}, got ({low!r}, {high!r})"
                )
            if low > high:
                raise UserError(f"SampledBits.{name} must be (low, high), got ({low}, {high}); swap the two")
        if self.shared and self.weight != self.act:
            raise UserError(
                f"shared=True needs equal intervals for weights and activations, got {self.weight} and {self.act}"
            )

    @property
    def bounds(self) -> tuple[Bits, ...]:
        """The lowest and the highest bit-widths."""
        return tuple(Bits(weight, act) for weight, act in zip(self.weight, self.act, strict=True))

    def __call__(self, step: int) -> Bits:
        weight = self._draw(step, "weight", self.weight)
        return Bits(weight, weight if self.shared else self._draw(step, "act", self.act))

    def _draw(self, step: int, name: str, interval: tuple[int, int]) -> int:
        low, high = interval
        suffixes = ("", *(f"/{index}" for index in range(1, self.draws)))
        return low + min(_hash(f"{self.seed}/{step}/{name}{suffix}") % (high - low + 1) for suffix in suffixes)


def read_schedule(node: Mapping[str, Any], prefix: str, seed: int, draws: int = 1) -> FixedBits | SampledBits:
    """The schedule that the keys ``WEIGHT_BITS``, ``ACT_BITS``, ``SHARED_DRAW`` and ``FIXED_BITS`` of a config node
    describe; ``prefix`` names the node in errors.

    >>> keys = {"WEIGHT_BITS": [2, 8], "ACT_BITS": [4, 8], "SHARED_DRAW": False, "FIXED_BITS": "4w4a"}
    >>> read_schedule(keys, "SSQL", seed=0)
    FixedBits(bits=Bits(weight=4, act=4))
    """
    if node["FIXED_BITS"]:
        return FixedBits(Bits.parse(node["FIXED_BITS"]))
    intervals = {}
    for key in ("WEIGHT_BITS", "ACT_BITS"):
        if len(node[key]) != 2:
            raise UserError(
                f"{prefix}.{key} must be the lowest and the highest bit-width, such as [2, 8]; got {list(node[key])}"
            )
        intervals[key] = tuple(node[key])
    return SampledBits(seed, intervals["WEIGHT_BITS"], intervals["ACT_BITS"], node["SHARED_DRAW"], draws)


def _hash(text: str) -> int:
    """A hash, because NumPy and torch do not guarantee the same random numbers in every version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
