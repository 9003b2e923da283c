"""How a network is quantized, as one value: which quantizer serves weights, which activations, what norms do, where."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, fields

from ssql_det.core.errors import UserError, did_you_mean, printable
from ssql_det.core.registry import Registry
from ssql_det.quant.bits import Bits
from ssql_det.quant.points import PLACEMENTS, PUBLISHED, QuantPoint, Side
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, WEIGHTS, Factory, Quantizer, TensorSpec

TRAINED, RE_ESTIMATED = "trained", "re-estimated"
NORMS = (TRAINED, RE_ESTIMATED)
_DEFAULT = "minmax"
_TRIAL = TensorSpec(QuantPoint("", Side.WEIGHT), shape=(1, 1), axis=0)


@dataclass(frozen=True)
class Scheme:
    """The published scheme by default. A quantizer is its name, with values behind colons where it takes some.

    ``norms``: ``trained`` statistics, or ``re-estimated`` from the calibration images at each width. ``placement``: the
    ``published`` one, or what an ``integer`` machine needs.

    >>> Scheme.parse("weight=centred, act=mse:2.4")
    Scheme(weight='centred', act='mse:2.4', norms='trained', placement='published')
    >>> str(Scheme()), str(Scheme.parse("act=percentile:99.9")), Scheme.parse("mse") == Scheme("mse", "mse")
    ('minmax', 'act=percentile:99.9', True)
    """

    weight: str = _DEFAULT
    act: str = _DEFAULT
    norms: str = TRAINED
    placement: str = PUBLISHED

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _canonical(self.weight, WEIGHTS, ACTIVATIONS))
        object.__setattr__(self, "act", _canonical(self.act, ACTIVATIONS, WEIGHTS))
        for name, value, known in (("norms", self.norms, NORMS), ("placement", self.placement, PLACEMENTS)):
            if value not in known:
                raise UserError(f"unknown {name} {value!r}{did_you_mean(value, known)} (known: {', '.join(known)})")

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read ``minmax`` (of weights and activations alike) or ``weight=centred, act=mse, norms=re-estimated``."""
        given: dict[str, str] = {}
        names = [field.name for field in fields(cls)]
        for part in text.split(","):
            name, is_pair, value = (each.strip() for each in part.partition("="))
            pairs = {name: value} if is_pair else {"weight": name, "act": name}
            for name, value in pairs.items():
                if name not in names:
                    shown = printable(name, 40)
                    raise UserError(f"a scheme has no {shown!r}{did_you_mean(name, names)} (it has {', '.join(names)})")
                if name in given:
                    raise UserError(f"the scheme {printable(text, 80)!r} says {name} twice")
                given[name] = value
        return cls(**given)

    def __str__(self) -> str:
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        is_one = self.weight == self.act != _DEFAULT  # a name alone stands for both
        parts = [self.weight] if is_one else []
        for name, value in mine.items():
            if value != defaults[name] and not (is_one and name in ("weight", "act")):
                parts.append(f"{name}={value}")
        return ", ".join(parts) or _DEFAULT

    def check_bits(self, widths: Iterable[Bits]) -> None:
        """Refuse bits that a quantizer does not give, before anything is calibrated for them.

        >>> Scheme.parse("act=mse").check_bits([Bits(4, 4), Bits(12, 12)])
        UserError: act=mse gives 2 to 10 bits, asked for are 12
        """
        for bits in widths:
            for side, text, table, width in (
                ("weight", self.weight, WEIGHTS, bits.weight),
                ("act", self.act, ACTIVATIONS, bits.act),
            ):
                name, values = _split(text)
                given = table.get(name)(_TRIAL, *values).supported_bits
                if width is not None and width not in given:
                    raise UserError(f"{side}={text} gives {given[0]} to {given[-1]} bits, asked for are {width}")

    def build_quantizer(self, spec: TensorSpec) -> Quantizer:
        """The one that serves a spec."""
        text, table = (self.weight, WEIGHTS) if spec.point.is_weight else (self.act, ACTIVATIONS)
        name, values = _split(text)
        return table.get(name)(spec, *values)


def _canonical(text: str, table: Registry[Factory], other: Registry[Factory]) -> str:
    """A quantizer as it is written; values at the end that are the defaults are left out."""
    name, values = _split(text)
    if name not in table and name in other:
        known = ", ".join(table)
        raise UserError(f"{name!r} is no {table.kind}, it serves the other side ({table.kind}s: {known})")
    _, *parameters = inspect.signature(table.get(name)).parameters.values()
    if len(values) > len(parameters):
        raise UserError(f"{name!r} takes {len(parameters)} value(s) behind its name, got {len(values)} in {text!r}")
    table.get(name)(_TRIAL, *values)  # it refuses values that cannot be
    while values and values[-1] == parameters[len(values) - 1].default:
        values.pop()
    return ":".join([name, *(repr(value).removesuffix(".0") for value in values)])


def _split(text: str) -> tuple[str, list[float]]:
    name, *values = (part.strip() for part in text.split(":"))
    try:
        return name, [float(value) for value in values]
    except ValueError:
        shown = printable(text, 60)
        raise UserError(f"a quantizer is a name and numbers behind colons, as mse:2.4; got {shown!r}") from None
