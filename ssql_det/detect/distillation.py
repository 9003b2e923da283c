"""The difference between a quantized detector and the float one, on the same images and regions, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssql_det.detect.detector_outputs import DetectorOutputs, recording_outputs
from ssql_det.detect.distillation_terms import distillation_loss
from ssql_det.detect.replay import RecordedBatch, run_with_recorded_proposals


class DistillationLoss:
    """The distillation loss on some batches. Its targets are the outputs of the detector, which must be float, at the
    construction."""

    def __init__(self, model: nn.Module, batches: Sequence[RecordedBatch]) -> None:
        self._batches = batches
        with torch.no_grad():
            self._targets = [compute_outputs(model.eval(), batch) for batch in batches]

    def __call__(self, model: nn.Module, index: int) -> Tensor:
        """The loss of the detector, as it is at the call, on the batch of an index."""
        return distillation_loss(compute_outputs(model, self._batches[index]), self._targets[index])


def compute_outputs(model: nn.Module, batch: RecordedBatch) -> DetectorOutputs:
    """Run the detector in evaluation mode, as it is at the call, with the recorded regions."""
    with recording_outputs(model) as record:
        run_with_recorded_proposals(model, batch)
    return record.collect()
