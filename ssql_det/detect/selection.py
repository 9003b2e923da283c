"""``--scheme auto``: try cheap schemes, one setting after the other, and take the one closest to the float detector.

A scheme is judged on training images that are kept for this, without labels: by the distillation loss, the difference
between the outputs of the quantized and the float detector on the same images and regions. The settings are chosen in
this order, each with the best values of those before it: the activation quantizer, the weight quantizer, norms, biases.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.detect.distillation import DistillationLoss
from ssql_det.detect.evaluation_data import RoleImages, merge_batches
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.detect.replay import record_proposals, run_with_recorded_proposals
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.norms import has_trainable_norms
from ssql_det.quant.scheme import CORRECTED, MATCHED, RE_ESTIMATED, TRAINED

AUTO = "auto"
_START: Mapping[str, Any] = {"weight": "centred", "norms": MATCHED}  # while activation quantizers are compared
_CHOICES: Mapping[str, Sequence[str]] = {
    "act": ("minmax", "mse", "mse:4"),
    "weight": ("minmax", "centred"),
    "norms": (TRAINED, MATCHED, RE_ESTIMATED),
    "biases": (TRAINED, CORRECTED),
}
_MIN_LOSS = 1e-12  # for the logarithm of the loss of a bit-width that changes nothing
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """A scheme with its distillation loss at each bit-width."""

    scheme: Scheme
    losses: tuple[float, ...]

    @property
    def score(self) -> float:
        """The geometric mean of the losses, so that all bit-widths count alike."""
        return math.exp(sum(math.log(max(loss, _MIN_LOSS)) for loss in self.losses) / len(self.losses))


def parse_auto(text: str) -> Scheme | None:
    """The scheme to start from for ``auto`` or ``auto, placement=integer``; ``None`` if the text names a scheme.

    >>> str(parse_auto("auto, placement=integer")), parse_auto("act=mse")
    ('placement=integer', None)
    """
    first, _, rest = text.partition(",")
    if first.strip() != AUTO:
        return None
    scheme = Scheme.parse(rest) if rest.strip() else Scheme()
    if chosen := [name for name in _CHOICES if getattr(scheme, name) != getattr(Scheme(), name)]:
        raise UserError(f"--scheme auto chooses {chosen[0]} itself; leave it out")
    return scheme


def select_scheme(
    model: nn.Module, images: RoleImages, bit_widths: Sequence[Bits], settings: QuantizationSettings
) -> tuple[Scheme, list[Trial]]:
    """Return the best scheme for all these bit-widths together, and all trials in their order.

    The scheme of ``settings`` is the start; what is not chosen here, such as the placement, stays. Tuning is added to
    the scheme that is the best without it.
    """
    if not len(images.selection):
        raise UserError("--scheme auto compares schemes on images that have no other use; give --selection-images")
    calibration = record_proposals(model, list(merge_batches(images.calibration)))
    selection = record_proposals(model, list(merge_batches(images.selection)))
    compute_loss = DistillationLoss(model, selection)
    points = detector_points(model, settings.scope, settings.scheme.placement)

    def measure(scheme: Scheme) -> Trial:
        quantization = Quantization(model, points, scheme)
        quantization.calibrate(calibration, forward=run_with_recorded_proposals)
        losses = []
        for bits in bit_widths:
            if quantization.list_missing_repairs(bits, settings.overrides):
                quantization.correct_norms(bits, calibration, settings.overrides, run_with_recorded_proposals)
            with quantization.at(bits, settings.overrides), torch.no_grad():
                indices = range(len(selection))
                losses.append(sum(float(compute_loss(model, index)) for index in indices) / len(selection))
        return Trial(scheme, tuple(losses))

    choices = dict(_CHOICES)
    if not has_trainable_norms(model):
        choices["norms"] = (TRAINED, MATCHED)
    trials = list(search_schemes(replace(settings.scheme, **_START, tune=0), choices, measure))
    best = min(trials, key=lambda trial: trial.score).scheme
    return _add_tuning(best, settings.scheme.tune), trials


def _add_tuning(scheme: Scheme, iterations: int) -> Scheme:
    """Tuning can also train the step sizes of activations: ``lsq`` is ``mse`` with trained step sizes.

    >>> str(_add_tuning(Scheme.parse("weight=centred, act=mse:4"), 200))
    'weight=centred, act=lsq:4, tune=200'
    """
    name, separator, exponent = scheme.act.partition(":")
    act = f"lsq{separator}{exponent}" if name == "mse" and iterations else scheme.act
    return replace(scheme, act=act, tune=iterations)


def search_schemes(
    start: Scheme, choices: Mapping[str, Sequence[str]], measure: Callable[[Scheme], Trial]
) -> Iterator[Trial]:
    """Try all values of one setting, then, with the best of them, those of the next; each scheme once."""
    trials: dict[Scheme, Trial] = {}
    best = start
    for name, values in choices.items():
        changes: list[dict[str, Any]] = [{name: value} for value in values]
        if name == "biases" and best.norms == RE_ESTIMATED:
            continue  # biases are corrected to the float network's means, and re-estimated norms have others
        candidates = [replace(best, **change) for change in changes]
        for scheme in candidates:
            if scheme not in trials:
                trials[scheme] = measure(scheme)
                _logger.info("%s: loss %s", scheme, ", ".join(f"{loss:.3g}" for loss in trials[scheme].losses))
                yield trials[scheme]
        best = min(candidates, key=lambda scheme: trials[scheme].score)
