"""Bit-widths as values: one pair, and schedules that draw a pair for each training step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ssql_det.core.errors import UserError, printable

LEAST, MOST = 2, 16

_WHOLE = re.compile(r"\d{1,4}")
_SPELLINGS = (  # 4w4a, and W4A4 as much of the literature writes
    re.compile(r"(?:(?P<weight>\d{1,4})w)?(?:(?P<act>\d{1,4})a)?"),
    re.compile(r"(?:w(?P<weight>\d{1,4}))?(?:a(?P<act>\d{1,4}))?"),
)


@dataclass(frozen=True)
class Bits:
    """Bits of the weights and of the activations; ``None`` stays float.

    >>> Bits(4, 4) == Bits.parse("4w4a"), str(Bits(8, None)), Bits.parse("FP")
    (True, '8w', Bits(weight=None, act=None))
    """

    weight: int | None
    act: int | None

    FP: ClassVar[Bits]

    def __post_init__(self) -> None:
        for side, bits in (("weight", self.weight), ("activation", self.act)):
            if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not LEAST <= bits <= MOST):
                raise UserError(f"{side} bits must be {LEAST} to {MOST}, or None for float; got {bits!r}")

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read ``FP``, ``4w4a``, ``8w`` (float activations) or ``6a`` (float weights); any case."""
        spelled = text.strip().lower()
        if spelled == "fp":
            return cls.FP
        for spelling in _SPELLINGS:
            match = spelling.fullmatch(spelled)
            if match and spelled:
                try:
                    return cls(*(int(bits) if bits else None for bits in match.group("weight", "act")))
                except UserError as mistake:
                    raise UserError(f"{mistake} in {text!r}") from None
        shown = printable(text, 40)
        raise UserError(f"cannot read bits {shown!r}; write FP, 4w4a, 8w (float activations) or 6a (float weights)")

    def __str__(self) -> str:
        weight = f"{self.weight}w" if self.weight else ""
        act = f"{self.act}a" if self.act else ""
        return weight + act or "FP"


Bits.FP = Bits(None, None)


def parse_widths(text: str) -> list[Bits]:
    """Bit-widths as people write them: ``FP``, ``8`` for weights and activations alike, ``2w4a``.

    >>> [str(bits) for bits in parse_widths("FP,8,2w4a")]
    ['FP', '8w8a', '2w4a']
    """
    parts = [part.strip() for part in text.split(",")]
    widths = [Bits(int(part), int(part)) if _WHOLE.fullmatch(part) else Bits.parse(part) for part in parts]
    return list(dict.fromkeys(widths))


def format_bits(bits: Bits, overrides: Mapping[str, Bits] | None = None) -> str:
    """What a width is called where parts of a network have bits of their own.

    >>> format_bits(Bits(4, 4), {"layer1.*": Bits(8, 8)})
    '4w4a, layer1.* at 8w8a'
    """
    return ", ".join([str(bits), *(f"{pattern} at {width}" for pattern, width in (overrides or {}).items())])


BitsSchedule = Callable[[int], Bits]
"""The bits of a training step: any function of the step's number."""


@dataclass(frozen=True)
class FixedBits:
    """The same bits at every step.

    >>> FixedBits(Bits(4, 4))(step=7)
    Bits(weight=4, act=4)
    """

    bits: Bits

    @property
    def bounds(self) -> tuple[Bits, ...]:
        return (self.bits,)

    def __call__(self, step: int) -> Bits:
        return self.bits


@dataclass(frozen=True)
class SampledBits:
    """Bits drawn anew each step, uniformly from closed intervals: SSQL's 2 to 8 and 4 to 8.

    A pure function of ``(seed, step)``: every rank and every resumed run draws the same. Weight and
    activation are drawn independently, or share one draw (``shared=True``, equal intervals).

    >>> SampledBits(seed=0)(step=7) == SampledBits(seed=0)(step=7)
    True
    """

    seed: int
    weight: tuple[int, int] = (2, 8)
    act: tuple[int, int] = (4, 8)
    shared: bool = False

    def __post_init__(self) -> None:
        for low, high in (self.weight, self.act):
            Bits(low, high)  # each end is a valid width
            if low > high:
                raise UserError(f"bits are drawn from low to high, got {low} to {high}; swap them")
        if self.shared and self.weight != self.act:
            raise UserError(f"one shared draw needs equal intervals, got {self.weight} and {self.act}")

    @property
    def bounds(self) -> tuple[Bits, ...]:
        """The fewest and the most."""
        return tuple(Bits(weight, act) for weight, act in zip(self.weight, self.act, strict=True))

    def __call__(self, step: int) -> Bits:
        weight = self._draw(step, "weight", self.weight)
        return Bits(weight, weight if self.shared else self._draw(step, "act", self.act))

    def _draw(self, step: int, side: str, interval: tuple[int, int]) -> int:
        # A hash, because NumPy and torch do not promise the same stream from one version to the next.
        digest = hashlib.blake2b(f"{self.seed}/{step}/{side}".encode(), digest_size=8).digest()
        low, high = interval
        return low + int.from_bytes(digest, "big") % (high - low + 1)
