"""Sensitivity analysis: how much each group of a detector's modules loses when it alone is quantized.

The loss is in AP, or, much faster, the relative error of the outputs behind the group. As the rest is float, the heads
see the same proposals as in the float detector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.detect.evaluation_data import Batch, merge_batches
from ssql_det.detect.quantized_evaluation import run_detector
from ssql_det.quant import Bits, Quantization, QuantPoint, evaluate_at_bit_width
from ssql_det.quant.hooks import recording_outputs

_GROUPS = (  # regular expressions of module paths, and the group's pattern in a bits file
    (r"(backbone(?:\.bottom_up)?\.stem).*", r"\1*"),
    (r"(backbone(?:\.bottom_up)?\.res\d)\..*", r"\1.*"),
    (r"backbone\.fpn_.*", r"backbone.fpn_*"),
    (r"(proposal_generator|roi_heads\.\w+)\..*", r"\1.*"),
)
_RPN = "proposal_generator.rpn_head"
_OUTPUT_MODULES = (  # the modules whose outputs are compared, by the beginning of a group's pattern
    ("backbone", ("backbone",)),
    ("proposal_generator", (f"{_RPN}.objectness_logits", f"{_RPN}.anchor_deltas")),
    ("roi_heads.mask_head", ("roi_heads.mask_head.predictor",)),
    ("roi_heads", ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")),
)


@dataclass(frozen=True)
class GroupSensitivity:
    """A group, as its pattern in a bits file, and its loss when it alone is quantized: AP, or a relative error."""

    pattern: str
    degradation: float


def list_groups(points: Sequence[QuantPoint]) -> list[str]:
    """The groups of a detector's quantization points, in their order.

    >>> from ssql_det.quant import Side
    >>> list_groups([QuantPoint("backbone.res2.0.conv1", Side.WEIGHT), QuantPoint("backbone.res2.0", Side.OUTPUT)])
    ['backbone.res2.*']
    """
    return list(dict.fromkeys(_get_group(point.path) for point in points))


def measure_feature_errors(
    quantization: Quantization, bits: Bits, batches: Sequence[Batch]
) -> Iterator[GroupSensitivity]:
    """Quantize each group alone; yield the relative error of the outputs behind it, averaged over the batches."""
    model = quantization.model.eval()
    for group in track(list_groups(quantization.points), "groups of modules"):
        paths = next(paths for prefix, paths in _OUTPUT_MODULES if group.startswith(prefix))
        errors = []
        for batch in batches:
            run = partial(_record_outputs, model, paths, batch)
            float_outputs = run()
            norm_batches = merge_batches(batches)
            outputs = evaluate_at_bit_width(quantization, Bits.FP, run, {group: bits}, norm_batches, run_detector)
            errors.append(_relative_error(outputs, float_outputs))
        yield GroupSensitivity(group, sum(errors) / len(errors))


def sort_by_degradation(sensitivities: Sequence[GroupSensitivity]) -> list[GroupSensitivity]:
    """The largest loss first."""
    return sorted(sensitivities, key=lambda each: -each.degradation)


def select_overrides(sensitivities: Sequence[GroupSensitivity], count: int, bits: Bits) -> dict[str, str]:
    """The content of a bits file that gives the ``count`` most sensitive groups these bits.

    >>> select_overrides([GroupSensitivity("a.*", 0.1), GroupSensitivity("b.*", 3.0)], 1, Bits(8, 8))
    {'b.*': '8w8a'}
    """
    return {each.pattern: str(bits) for each in sort_by_degradation(sensitivities)[:count]}


def _get_group(path: str) -> str:
    for expression, pattern in _GROUPS:
        if match := re.fullmatch(expression, path):
            return match.expand(pattern)
    raise UserError(f"{path} is in none of the groups that the sensitivity analysis supports")


def _record_outputs(model: nn.Module, paths: Sequence[str], batch: Batch) -> list[Tensor]:
    with recording_outputs(model, paths) as outputs, torch.no_grad():
        model(batch)
    return outputs


def _relative_error(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Over all outputs together; 0 if they are empty, as where nothing was detected."""
    pairs = list(zip(outputs, references, strict=True))
    error = sum(float((output - reference).square().sum()) for output, reference in pairs)
    size = sum(float(reference.square().sum()) for _, reference in pairs)
    return float((error / size) ** 0.5) if size else 0.0
