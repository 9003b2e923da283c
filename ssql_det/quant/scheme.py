"""How a network is quantized, as one value: quantizers of weights and activations, norms, placement, repairs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from ssql_det.core.errors import UserError, did_you_mean, printable
from ssql_det.core.registry import Registry
from ssql_det.quant.bits import Bits
from ssql_det.quant.points import PER_LEVEL, PLACEMENTS, PUBLISHED, QuantPoint, Side
from ssql_det.quant.quantizers.learned_rounding import LearnedRounding
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, WEIGHTS, Quantizer, QuantizerFactory, TensorSpec

TRAINED, MATCHED, RE_ESTIMATED, SWITCHABLE = "trained", "matched", "re-estimated", "switchable"
NORMS = (TRAINED, MATCHED, RE_ESTIMATED, SWITCHABLE)
CORRECTED = "corrected"
BIASES = (TRAINED, CORRECTED)
NO, YES = "no", "yes"
# Repairs, in the order in which they are made; the first ones in training.
SWITCHABLE_NORMS, ROUNDING, NORM_CORRECTION, TUNING = "switchable norms", "rounding", "norms", "tune"
HOW_TO_LEARN = {
    SWITCHABLE_NORMS: "train with switchable norms",
    **dict.fromkeys((ROUNDING, TUNING), "run `ssql-det quantize`"),
}
_DEFAULT_QUANTIZER = "minmax"
_MAX_DIGITS = 6  # of the number of steps to tune
_EXAMPLE_SPEC = TensorSpec(QuantPoint("", Side.WEIGHT), shape=(1, 1), axis=0)  # to build quantizers only to check them


@dataclass(frozen=True)
class Scheme:
    """The default is the published scheme. A quantizer is written as its name, with numbers after colons:
    ``mse:2.4`` minimizes ``sum |x - x_q| ** 2.4``.

    ``norms``: as ``trained``; ``matched``: their outputs have the mean and variance of the float network's on the
    calibration images; ``re-estimated``: with the statistics of these images. ``biases``, of layers without norm: as
    ``trained``, or ``corrected`` to the means of the float network. All are computed for each bit-width. Norms that are
    ``switchable`` were trained for each bit-width of weights.
    ``placement``: the ``published`` quantization points, or those that ``integer`` arithmetic needs; of a detector with
    an FPN also ``per-level``, the published ones with a range for each level in the RPN.
    ``tune``: steps of tuning norms, biases and activation steps towards the float network's outputs.
    ``equalize``: with ``yes`` channels between layers joined by a ReLU are rescaled: see ``quant/equalization.py``.

    >>> Scheme.parse("weight=centred, act=mse:2.4") == Scheme(weight="centred", act="mse:2.4")
    True
    >>> str(Scheme()), str(Scheme.parse("act=percentile:99.9")), Scheme.parse("mse") == Scheme("mse", "mse")
    ('minmax', 'act=percentile:99.9', True)
    """

    weight: str = _DEFAULT_QUANTIZER
    act: str = _DEFAULT_QUANTIZER
    norms: str = TRAINED
    placement: str = PUBLISHED
    tune: int = 0
    equalize: str = NO
    biases: str = TRAINED

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _normalize_quantizer(self.weight, WEIGHTS, ACTIVATIONS))
        object.__setattr__(self, "act", _normalize_quantizer(self.act, ACTIVATIONS, WEIGHTS))
        object.__setattr__(self, "tune", _parse_steps(self.tune))
        choices = {"norms": NORMS, "placement": PLACEMENTS, "equalize": (NO, YES), "biases": BIASES}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"unknown {name} {value!r}{did_you_mean(value, known)} (known: {', '.join(known)})")
        if self.biases == CORRECTED and self.norms in (RE_ESTIMATED, SWITCHABLE):
            raise UserError("biases=corrected needs the float network's means, so use norms=matched or norms=trained")
        if self.placement == PER_LEVEL and _parse_quantizer(self.weight)[0] == "adaround":
            raise UserError(
                f"weight=adaround learns each layer alone, without levels as in placement={PER_LEVEL}; use weight=brecq"
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read ``minmax`` (for weights and activations) or ``weight=centred, act=mse, norms=re-estimated``."""
        parsed: dict[str, Any] = {}
        names = [field.name for field in fields(cls)]
        for part in text.split(","):
            name, separator, value = (each.strip() for each in part.partition("="))
            pairs = {name: value} if separator else {"weight": name, "act": name}
            for name, value in pairs.items():
                if name not in names:
                    quoted = printable(name, 40)
                    raise UserError(
                        f"unknown key {quoted!r} in a scheme{did_you_mean(name, names)} (known: {', '.join(names)})"
                    )
                if name in parsed:
                    raise UserError(f"the scheme {printable(text, 80)!r} sets {name} twice")
                parsed[name] = value
        return cls(**parsed)

    def __str__(self) -> str:
        # "mse" is short for "weight=mse, act=mse"; the default quantizers are not written.
        has_short_form = self.weight == self.act != _DEFAULT_QUANTIZER
        parts = [self.weight] if has_short_form else []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and not (has_short_form and field.name in ("weight", "act")):
                parts.append(f"{field.name}={value}")
        return ", ".join(parts) or _DEFAULT_QUANTIZER

    @property
    def repairs(self) -> tuple[str, ...]:
        """What is learned for each bit-width, in this order: ``switchable norms``, ``rounding``, ``norms``, ``tune``.

        >>> Scheme.parse("weight=brecq, norms=matched").repairs
        ('rounding', 'norms')
        """
        needed = {
            SWITCHABLE_NORMS: self.norms == SWITCHABLE,
            ROUNDING: isinstance(self.build_quantizer(_EXAMPLE_SPEC), LearnedRounding),
            NORM_CORRECTION: self.norms in (MATCHED, RE_ESTIMATED) or self.biases == CORRECTED,
            TUNING: self.tune > 0,
        }
        return tuple(name for name, is_needed in needed.items() if is_needed)

    @property
    def learned_repairs(self) -> tuple[str, ...]:
        """Those of ``repairs`` that are learned beforehand; norms are corrected where they are needed.

        >>> Scheme.parse("weight=brecq, norms=matched").learned_repairs
        ('rounding',)
        """
        return tuple(name for name in self.repairs if name != NORM_CORRECTION)

    def check_learns_nothing(self, bit_widths: Iterable[Bits]) -> None:
        """Raise an error if one of these bit-widths needs learned repairs, for evaluations without a file of them.

        >>> Scheme.parse("weight=brecq").check_learns_nothing([Bits.FP])
        """
        if self.learned_repairs and any(bits != Bits.FP for bits in bit_widths):
            name = self.learned_repairs[0]
            raise UserError(
                f"the scheme {self} needs {name}, which is learned for each bit-width: {HOW_TO_LEARN[name]}, and give "
                "its file to sweep, predict or probe by --quantization"
            )

    def check_bits(self, bit_widths: Iterable[Bits]) -> None:
        """Raise an error for bit-widths that a quantizer does not support.

        >>> Scheme.parse("act=mse").check_bits([Bits(4, 4), Bits(12, 12)])
        Traceback (most recent call last):
        ssql_det.core.errors.UserError: act=mse supports 2 to 10 bits, not 12
        """
        for bits in bit_widths:
            for key, text, registry, bit_width in (
                ("weight", self.weight, WEIGHTS, bits.weight),
                ("act", self.act, ACTIVATIONS, bits.act),
            ):
                name, values = _parse_quantizer(text)
                supported = registry.get(name)(_EXAMPLE_SPEC, *values).supported_bits
                if bit_width is not None and bit_width not in supported:
                    raise UserError(f"{key}={text} supports {supported[0]} to {supported[-1]} bits, not {bit_width}")

    def build_quantizer(self, spec: TensorSpec) -> Quantizer:
        """Build the quantizer of a tensor.

        >>> spec = TensorSpec(QuantPoint("conv1", Side.WEIGHT), shape=(8, 3, 3, 3), axis=0)
        >>> Scheme.parse("weight=centred").build_quantizer(spec)
        CentredWeight()
        """
        text, registry = (self.weight, WEIGHTS) if spec.point.is_weight else (self.act, ACTIVATIONS)
        name, values = _parse_quantizer(text)
        return registry.get(name)(spec, *values)


def _parse_steps(steps: int | str) -> int:
    text = str(steps)
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise UserError(f"tune must be a number of steps, as in tune=200; got {printable(text, 40)!r}")
    return int(text)


def _normalize_quantizer(
    text: str, registry: Registry[QuantizerFactory], other_registry: Registry[QuantizerFactory]
) -> str:
    """Return the canonical text of a quantizer, without trailing parameters that have their default values."""
    name, values = _parse_quantizer(text)
    if name not in registry and name in other_registry:
        known = ", ".join(registry)
        raise UserError(f"{name!r} is no {registry.kind}; use one of {known}")
    _spec, *parameters = inspect.signature(registry.get(name)).parameters.values()
    if len(values) > len(parameters):
        raise UserError(f"{name!r} takes {len(parameters)} parameter(s), got {len(values)} in {text!r}")
    registry.get(name)(_EXAMPLE_SPEC, *values)  # raises an error for invalid values
    while values and values[-1] == parameters[len(values) - 1].default:
        values.pop()
    return ":".join([name, *(repr(value).removesuffix(".0") for value in values)])


def _parse_quantizer(text: str) -> tuple[str, list[float]]:
    name, *values = (part.strip() for part in text.split(":"))
    try:
        return name, [float(value) for value in values]
    except ValueError:
        quoted = printable(text, 60)
        raise UserError(f"a quantizer is a name and numbers after colons, as in mse:2.4; got {quoted!r}") from None
