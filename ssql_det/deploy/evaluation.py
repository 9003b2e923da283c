"""An exported detector in the engine's place, so that the engine's evaluators measure its AP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssql_det.convert import Checkpoint
from ssql_det.core.distributed import broadcast_from_main
from ssql_det.core.rows import ONNXRUNTIME, OPENVINO
from ssql_det.d2 import Boxes, CfgNode, Instances
from ssql_det.deploy.detector import Detector
from ssql_det.deploy.export import export_detector, make_integers
from ssql_det.deploy.openvino_detector import OpenVINODetector, import_openvino
from ssql_det.detect.quantized_evaluation import EvaluationEngine
from ssql_det.quant import Bits, Quantization


def make_runtime_engine(
    runtime: str, cfg: CfgNode, checkpoint: Checkpoint, config_label: str, scope: str, folder: Path
) -> EvaluationEngine:
    """Evaluations export the detector to ``folder/detector_BITS.onnx``, and evaluate this file in a runtime of
    ``core.rows.RUNTIMES``."""
    open_detector = {ONNXRUNTIME: Detector, OPENVINO: OpenVINODetector}[runtime]
    if runtime == OPENVINO:
        import_openvino()

    def make_model(quantization: Quantization, bits: Bits, overrides: Mapping[str, Bits] | None) -> nn.Module:
        path = folder / f"detector_{bits}.onnx"
        integers = None if bits == Bits.FP else make_integers(quantization, bits, scope, overrides)
        broadcast_from_main(partial(export_detector, cfg, quantization.model, checkpoint, config_label, path, integers))
        return ExportedDetector(open_detector(path))

    return EvaluationEngine(runtime, make_model)


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
