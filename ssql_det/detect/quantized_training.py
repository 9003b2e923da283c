"""``SSQL_DET.QUANTIZED_TRAINING``: the bit-widths that a detector is trained at, and how it is quantized there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.d2 import NODE, CfgNode
from ssql_det.detect.distillation_terms import TERMS
from ssql_det.detect.points import SCOPES
from ssql_det.quant import Bits, FixedBits, SampledBits, Scheme
from ssql_det.quant.bits import read_schedule
from ssql_det.quant.scheme import SWITCHABLE
from ssql_det.quant.training import QuantizerOptim, check_trainable

UNIFORM, SKEWED, SANDWICH = "uniform", "skewed", "sandwich"
SAMPLINGS = (UNIFORM, SKEWED, SANDWICH)
SHARED = "shared"
QUANTIZED_TRAINING_DEFAULTS: Mapping[str, Any] = {
    "ENABLED": False,  # train at low bit-widths too
    "SCHEME": "minmax",  # the quantizers; independent of those of evaluations
    "SCOPE": "all",  # part of the detector that is quantized: one of points.SCOPES
    "WEIGHT_BITS": [2, 8],  # lowest and highest; a step may draw either, or one between them
    "ACT_BITS": [4, 8],
    "SHARED_DRAW": False,  # the same draw for weights and activations; WEIGHT_BITS must equal ACT_BITS
    "FIXED_BITS": "",  # such as 4w4a: use these bit-widths in every step
    "SAMPLING": UNIFORM,  # or skewed: the lower of two draws; or sandwich: a pass at the lowest bits, one at drawn bits
    "QUANTIZER_LR_FACTOR": 1.0,  # times SOLVER.BASE_LR, for trained parameters of quantizers, as those of act=lsq
    "QUANTIZER_WEIGHT_DECAY": 0.0,  # of these parameters; for act=pact, of its clipping levels
    "START": 0,  # the first iteration with quantized passes; those before it train in float
    "NORMS": SHARED,  # by all bit-widths; or switchable: weight, bias and statistics for each bit-width of weights
    "DISTILLATION": 0.0,  # weight of the difference between outputs of a quantized pass and those of the float pass
    "DISTILLATION_TERMS": list(TERMS),  # the outputs that are compared
}
_NODE = f"{NODE}.QUANTIZED_TRAINING"
QUANTIZED_TRAINING_KEYS = tuple(f"{_NODE}.{key}" for key in QUANTIZED_TRAINING_DEFAULTS)


@dataclass(frozen=True)
class QuantizedTraining:
    """In addition to full precision, each step trains the bit-widths ``choose_bits(iteration)``."""

    schedule: FixedBits | SampledBits
    has_lowest: bool = False  # each step also trains the lowest bit-widths
    start: int = 0  # the first iteration with quantized passes
    scheme: Scheme = field(default_factory=Scheme)
    scope: str = "all"
    distillation: float = 0.0  # its weight
    distillation_terms: tuple[str, ...] = tuple(TERMS)
    quantizer_optim: QuantizerOptim = field(default_factory=QuantizerOptim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> QuantizedTraining | None:
        """``None`` if the config describes float training; a scheme or bits that cannot be trained are an error."""
        node = cfg.SSQL_DET.QUANTIZED_TRAINING
        for key, known in (("SAMPLING", SAMPLINGS), ("SCOPE", SCOPES), ("NORMS", (SHARED, SWITCHABLE))):
            if node[key] not in known:
                raise UserError(f"{_NODE}.{key} must be {' or '.join(known)}, got {node[key]!r}")
        unknown = [each for each in node.DISTILLATION_TERMS if each not in TERMS]
        if unknown:
            hint = did_you_mean(unknown[0], TERMS)
            raise UserError(f"{_NODE}.DISTILLATION_TERMS has {unknown[0]!r}{hint} (known: {', '.join(TERMS)})")
        schedule = read_schedule(node, _NODE, max(cfg.SEED, 0), draws=2 if node.SAMPLING == SKEWED else 1)
        scheme = Scheme.parse(node.SCHEME)
        check_trainable(scheme, schedule.bounds, f"{_NODE}.SCHEME: a detector cannot be trained with")
        if node.NORMS == SWITCHABLE:
            scheme = replace(scheme, norms=SWITCHABLE)
        distillation = node.DISTILLATION, tuple(node.DISTILLATION_TERMS)
        optim = QuantizerOptim(node.QUANTIZER_LR_FACTOR, node.QUANTIZER_WEIGHT_DECAY)
        training = cls(schedule, node.SAMPLING == SANDWICH, node.START, scheme, node.SCOPE, *distillation, optim)
        if node.NORMS == SWITCHABLE and not training.weight_bits:
            raise UserError(
                f"{_NODE}.NORMS switchable needs bits of weights, but FIXED_BITS {node.FIXED_BITS} has none"
            )
        return training if node.ENABLED else None

    @property
    def weight_bits(self) -> range:
        """The bit-widths of weights that are trained.

        >>> QuantizedTraining(SampledBits(seed=0)).weight_bits
        range(2, 9)
        """
        bounds = [bits.weight for bits in self.schedule.bounds if bits.weight is not None]
        return range(bounds[0], bounds[-1] + 1) if bounds else range(0)

    def choose_bits(self, iteration: int) -> tuple[Bits, ...]:
        """The bit-widths of the quantized passes of an iteration, which counts from 0.

        >>> QuantizedTraining(SampledBits(seed=0), has_lowest=True, start=1).choose_bits(0)
        ()
        >>> QuantizedTraining(FixedBits(Bits(4, 4)), start=1).choose_bits(1)
        (Bits(weight=4, act=4),)
        """
        if iteration < self.start:
            return ()
        drawn = self.schedule(iteration)
        return (self.schedule.bounds[0], drawn) if self.has_lowest else (drawn,)
