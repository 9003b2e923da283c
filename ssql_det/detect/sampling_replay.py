"""Let the quantized pass of a training step see the anchors and regions that the float pass sampled.

The RPN and the heads are trained on random samples, of all anchors and of the proposals. Two passes that draw their own
would differ in their samples more than in their bits. So the float pass is recorded, and the quantized one replays it,
without random numbers and without proposals of its own::

    with recording_samples(model) as samples:
        losses = model(batch)
    with quantization.at(bits), replaying_samples(model, samples):
        quantized_losses = model(batch)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.d2 import GeneralizedRCNN, Instances
from ssql_det.quant.hooks import overriding_attributes


@dataclass(eq=False)
class Samples:
    """What a forward pass in training mode sampled: ``anchors``, their labels and boxes in each image, as the RPN's
    ``label_and_sample_anchors`` returns them; ``regions`` [N], labelled proposals of each image."""

    anchors: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    regions: list[Instances] = field(default_factory=list)


@contextmanager
def recording_samples(model: nn.Module) -> Iterator[Samples]:
    """Record what the next forward pass samples. The model must be in training mode."""
    check_samples(model)
    detector: Any = model
    sample_anchors = detector.proposal_generator.label_and_sample_anchors
    sample_regions = detector.roi_heads.label_and_sample_proposals
    samples = Samples()

    def record_anchors(*args: Any) -> Any:
        samples.anchors = sample_anchors(*args)
        return samples.anchors

    def record_regions(*args: Any) -> Any:
        regions = sample_regions(*args)
        samples.regions = _copy_instances(regions)
        return regions

    with (
        overriding_attributes(detector.proposal_generator, label_and_sample_anchors=record_anchors),
        overriding_attributes(detector.roi_heads, label_and_sample_proposals=record_regions),
    ):
        yield samples


@contextmanager
def replaying_samples(model: nn.Module, samples: Samples) -> Iterator[None]:
    """Train on recorded samples in forward passes of the same batch; the RPN proposes nothing."""
    detector: Any = model
    with (
        overriding_attributes(
            detector.proposal_generator,
            label_and_sample_anchors=lambda *args: samples.anchors,
            predict_proposals=lambda *args: [],
        ),
        overriding_attributes(
            detector.roi_heads, label_and_sample_proposals=lambda *args: _copy_instances(samples.regions)
        ),
    ):
        yield


def check_samples(model: nn.Module) -> None:
    """Raise a ``UserError`` for a detector whose samples cannot be recorded."""
    detector: Any = model
    if (
        not isinstance(model, GeneralizedRCNN)
        or not hasattr(detector.proposal_generator, "label_and_sample_anchors")
        or not hasattr(detector.roi_heads, "label_and_sample_proposals")
    ):
        raise UserError(
            f"the samples of {type(model).__name__} cannot be shared by two passes: any-precision training supports "
            "Faster and Mask R-CNN; set SSQL_DET.QUANTIZED_TRAINING.ENABLED False"
        )


def _copy_instances(instances: Sequence[Instances]) -> list[Instances]:
    """Copies that share their tensors: heads may set other fields, such as predicted boxes for the mask head."""
    return [Instances(each.image_size, **each.get_fields()) for each in instances]
