"""Which part of a detector a low bit-width hurts: one group of modules quantized at a time, the rest float.

The loss is in AP, or, much faster, the relative error of what the group's branch puts out: with everything before it
float, a head sees the very proposals that it sees in the float network.
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
from ssql_det.quant import Bits, Quantization, QuantPoint, evaluate_at_width
from ssql_det.quant.hooks import recording_outputs

_GROUPS = (  # a pattern of paths, and how the group is called in a bits file
    (r"(backbone(?:\.bottom_up)?\.stem).*", r"\1*"),
    (r"(backbone(?:\.bottom_up)?\.res\d)\..*", r"\1.*"),
    (r"backbone\.fpn_.*", r"backbone.fpn_*"),
    (r"(proposal_generator|roi_heads\.\w+)\..*", r"\1.*"),
)
_RPN = "proposal_generator.rpn_head"
_BRANCHES = (  # where the error of a group is looked at: by the beginning of its name
    ("backbone", ("backbone",)),
    ("proposal_generator", (f"{_RPN}.objectness_logits", f"{_RPN}.anchor_deltas")),
    ("roi_heads.mask_head", ("roi_heads.mask_head.predictor",)),
    ("roi_heads", ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")),
)


@dataclass(frozen=True)
class GroupSensitivity:
    """A group, by its pattern for a bits file, and what it loses alone at few bits: AP, or a relative error."""

    pattern: str
    loss: float


def list_groups(points: Sequence[QuantPoint]) -> list[str]:
    """The groups of a detector's points, in their order.

    >>> list_groups(detector_points(detector, "all"))
    ['backbone.stem*', 'backbone.res2.*', ..., 'roi_heads.box_predictor.*']
    """
    return list(dict.fromkeys(_group(point.path) for point in points))


def measure_feature_errors(
    quantization: Quantization, bits: Bits, batches: Sequence[Batch]
) -> Iterator[GroupSensitivity]:
    """For each group the relative error of its branch's outputs, averaged over the images."""
    model = quantization.model.eval()
    for group in track(list_groups(quantization.points), "groups of modules"):
        sinks = next(names for beginning, names in _BRANCHES if group.startswith(beginning))
        errors = []
        for batch in batches:
            outputs = partial(_outputs, model, sinks, batch)
            reference = outputs()
            found = evaluate_at_width(
                quantization, Bits.FP, outputs, {group: bits}, merge_batches(batches), run_detector
            )
            errors.append(_relative_error(found, reference))
        yield GroupSensitivity(group, sum(errors) / len(errors))


def sort_by_loss(found: Sequence[GroupSensitivity]) -> list[GroupSensitivity]:
    """The most hurt first."""
    return sorted(found, key=lambda each: -each.loss)


def select_overrides(found: Sequence[GroupSensitivity], keep: int, bits: Bits) -> dict[str, str]:
    """A bits file: the ``keep`` most hurt groups at more bits than the rest.

    >>> select_overrides([GroupSensitivity("a.*", 0.1), GroupSensitivity("b.*", 3.0)], 1, Bits(8, 8))
    {'b.*': '8w8a'}
    """
    return {each.pattern: str(bits) for each in sort_by_loss(found)[:keep]}


def _group(path: str) -> str:
    for pattern, name in _GROUPS:
        if match := re.fullmatch(pattern, path):
            return match.expand(name)
    raise UserError(f"{path} belongs to no group that is known here")


def _outputs(model: nn.Module, sinks: Sequence[str], batch: Batch) -> list[Tensor]:
    with recording_outputs(model, sinks) as seen, torch.no_grad():
        model(batch)
    return seen


def _relative_error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Of all outputs together; of nothing, as where nothing was detected, there is none."""
    pairs = list(zip(found, reference, strict=True))
    error = sum(float((one - other).square().sum()) for one, other in pairs)
    size = sum(float(other.square().sum()) for _, other in pairs)
    return float((error / size) ** 0.5) if size else 0.0
