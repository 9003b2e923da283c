"""An exported detector in the engine's place, so that the engine's evaluators measure its AP."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssql_det.d2 import Boxes, Instances
from ssql_det.deploy.detector import Detector

ENGINE = "onnxruntime"  # in result rows


class ExportedDetector(nn.Module):
    """Takes the engine's inputs and gives its outputs, but computes them with onnxruntime."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._detect(inputs)} for inputs in batched_inputs]

    def _detect(self, inputs: dict[str, Any]) -> Instances:
        resized = inputs["image"].permute(1, 2, 0).contiguous().numpy()
        height, width = inputs["height"], inputs["width"]
        found = self.detector.finish(self.detector.detect_resized(resized), height, width)
        fields = {
            "pred_boxes": Boxes(torch.from_numpy(found.boxes)),
            "scores": torch.from_numpy(found.scores),
            "pred_classes": torch.from_numpy(found.classes),
        }
        if found.masks is not None:
            fields["pred_masks"] = torch.from_numpy(found.masks)
        return Instances((height, width), **fields)
