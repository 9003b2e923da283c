"""Sensitivity analysis: how much a detector degrades when only one group of its modules is quantized.

The degradation is the drop in AP or, faster to compute, the relative error of outputs downstream of the group. When the
group is a head, the rest is float, so the head gets the proposals of the float detector.
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
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.quantized_evaluation import NormBatches, evaluate_detector_at
from ssql_det.quant import Bits, Quantization, QuantPoint
from ssql_det.quant.hooks import recording_outputs

_GROUPS = (  # regular expression of module paths, and the pattern that a bits file (JSON: bit-widths by pattern) has
    (r"(backbone(?:\.bottom_up)?\.stem).*", r"\1*"),
    (r"(backbone(?:\.bottom_up)?\.res\d)\..*", r"\1.*"),
    (r"backbone\.fpn_.*", r"backbone.fpn_*"),
    (r"(proposal_generator|roi_heads\.\w+)\..*", r"\1.*"),
)
_RPN = "proposal_generator.rpn_head"
_OUTPUT_MODULES = (  # modules whose outputs are compared, by the beginning of a group's pattern; the first match counts
    ("backbone", ("backbone",)),
    ("proposal_generator", (f"{_RPN}.objectness_logits", f"{_RPN}.anchor_deltas")),
    ("roi_heads.mask_head", ("roi_heads.mask_head.predictor",)),
    ("roi_heads", ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")),
)


@dataclass(frozen=True)
class GroupSensitivity:
    """The degradation of a detector when only one group of modules is quantized: a drop in AP, or a relative error."""

    pattern: str  # of the group's module paths, as a bits file has it
    degradation: float  # drop in AP (AP is 0 to 100), or relative error (0: none)


def list_groups(points: Sequence[QuantPoint]) -> list[str]:
    """The groups that a detector's quantization points belong to, in the order of the points.

    >>> from ssql_det.quant import Side
    >>> list_groups([QuantPoint("backbone.res2.0.conv1", Side.WEIGHT), QuantPoint("backbone.res2.0", Side.OUTPUT)])
    ['backbone.res2.*']
    """
    return list(dict.fromkeys(_get_group(point.path) for point in points))


def measure_feature_errors(
    quantization: Quantization, bits: Bits, batches: Sequence[Batch]
) -> Iterator[GroupSensitivity]:
    """Quantize one group at a time; yield the relative error of outputs downstream of it, averaged over the batches.

    The batches have one image each; norms are computed from them if the scheme says so.
    """
    model = quantization.model.eval()
    norm_batches = NormBatches(model, batches)
    for group in track(list_groups(quantization.points), "groups of modules"):
        output_modules = next(modules for prefix, modules in _OUTPUT_MODULES if group.startswith(prefix))
        errors = []
        for batch in batches:
            run_batch = partial(_record_outputs, model, output_modules, batch)
            float_outputs = run_batch()
            outputs = evaluate_detector_at(quantization, Bits.FP, run_batch, {group: bits}, norm_batches)
            errors.append(_compute_relative_error(outputs, float_outputs))
        yield GroupSensitivity(group, sum(errors) / len(errors))


def sort_by_degradation(sensitivities: Sequence[GroupSensitivity]) -> list[GroupSensitivity]:
    """Sort the groups, the largest degradation first."""
    return sorted(sensitivities, key=lambda sensitivity: -sensitivity.degradation)


def select_overrides(sensitivities: Sequence[GroupSensitivity], count: int, bits: Bits) -> dict[str, str]:
    """The content of a bits file that sets the ``count`` most sensitive groups to ``bits``.

    >>> select_overrides([GroupSensitivity("a.*", 0.1), GroupSensitivity("b.*", 3.0)], 1, Bits(8, 8))
    {'b.*': '8w8a'}
    """
    most_sensitive = sort_by_degradation(sensitivities)[:count]
    return {sensitivity.pattern: str(bits) for sensitivity in most_sensitive}


def _get_group(path: str) -> str:
    for expression, pattern in _GROUPS:
        if match := re.fullmatch(expression, path):
            return match.expand(pattern)
    raise UserError(f"{path} belongs to no group of modules that the sensitivity analysis supports")


def _record_outputs(model: nn.Module, paths: Sequence[str], batch: Batch) -> list[Tensor]:
    with recording_outputs(model, paths) as outputs, torch.no_grad():
        model(batch)
    return outputs


def _compute_relative_error(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Relative L2 error over all outputs together; 0 if all references are 0 or empty (nothing was detected)."""
    pairs = list(zip(outputs, references, strict=True))
    squared_error = sum(float((output - reference).square().sum()) for output, reference in pairs)
    squared_norm = sum(float(reference.square().sum()) for _, reference in pairs)
    return float((squared_error / squared_norm) ** 0.5) if squared_norm else 0.0
