"""Record what the backbone and the predictors of a detector return in a forward pass, in training or evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DetectorOutputs:
    """What a detector's predictors return for a batch, before any decoding, and its backbone's feature maps.

    objectness [A], anchor_deltas [A, 4]: of all anchors of all levels and images; class_logits [R, K + 1] and
    box_deltas [R, 4 K or 4]: of all regions; mask_logits [D, M, M]: of the class of each detection, or of each
    foreground region in training; ``None`` without masks. features: [N, C, H, W] of each level.
    """

    objectness: Tensor
    anchor_deltas: Tensor
    class_logits: Tensor
    box_deltas: Tensor
    mask_logits: Tensor | None
    features: tuple[Tensor, ...] = ()

    def detach(self) -> DetectorOutputs:
        """The same outputs as targets, without their graph."""
        return DetectorOutputs(
            objectness=self.objectness.detach(),
            anchor_deltas=self.anchor_deltas.detach(),
            class_logits=self.class_logits.detach(),
            box_deltas=self.box_deltas.detach(),
            mask_logits=None if self.mask_logits is None else self.mask_logits.detach(),
            features=tuple(each.detach() for each in self.features),
        )


class OutputRecord:
    """The outputs of the last forward pass within :func:`recording_outputs`."""

    def __init__(self) -> None:
        self._outputs: dict[str, Any] = {}
        self._mask_classes: Tensor | None = None

    def record(self, name: str, output: Any) -> None:
        self._outputs[name] = output

    def record_mask_classes(self, instances: Any) -> None:
        """The classes of the instances of all images, to which the mask head was applied."""
        classes = [each.gt_classes if each.has("gt_classes") else each.pred_classes for each in instances]
        self._mask_classes = torch.cat(classes)

    def collect(self) -> DetectorOutputs:
        """Half precision becomes float32, in which losses are computed."""
        logits, deltas = self._outputs["rpn"]
        features = self._outputs.get("features", {})
        return DetectorOutputs(
            objectness=torch.cat([_upcast(each).permute(0, 2, 3, 1).flatten() for each in logits]),
            anchor_deltas=torch.cat([_upcast(each).permute(0, 2, 3, 1).reshape(-1, 4) for each in deltas]),
            class_logits=_upcast(self._outputs["boxes"][0]),
            box_deltas=_upcast(self._outputs["boxes"][1]),
            mask_logits=self._select_mask_classes(),
            features=tuple(map(_upcast, features.values() if isinstance(features, Mapping) else [features])),
        )

    def _select_mask_classes(self) -> Tensor | None:
        """The masks [D, M, M] of the classes of the instances; class-agnostic masks are shared."""
        logits, classes = self._outputs.get("masks"), self._mask_classes
        if logits is None or classes is None:
            return None
        logits = _upcast(logits)
        return logits[torch.arange(len(logits), device=logits.device), classes.clamp(max=logits.shape[1] - 1)]


@contextmanager
def recording_outputs(model: nn.Module, with_features: bool = False) -> Iterator[OutputRecord]:
    """Record the outputs of a pass of Faster or Mask R-CNN; call ``collect()`` of the record after the pass.

    The backbone's feature maps are recorded ``with_features`` alone, as they are large. Enter this last: the outputs
    are those that contexts outside of it leave, such as quantized ones.
    """
    detector: Any = model
    record = OutputRecord()
    modules = {"rpn": detector.proposal_generator.rpn_head, "boxes": detector.roi_heads.box_predictor}
    if with_features:
        modules["features"] = detector.backbone
    mask_head = getattr(detector.roi_heads, "mask_head", None)
    if mask_head is not None:
        modules["masks"] = mask_head.predictor

    def make_hook(name: str) -> Any:
        return lambda module, args, output: record.record(name, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(make_hook(name)).remove)
        if mask_head is not None:
            hook = mask_head.register_forward_pre_hook(lambda module, args: record.record_mask_classes(args[1]))
            stack.callback(hook.remove)
        yield record


def _upcast(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
