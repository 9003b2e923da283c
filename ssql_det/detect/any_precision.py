"""Any-precision training: one copy of a detector's weights is trained in float and at other bit-widths in each step.

A step is a float pass over the batch, which observes the ranges of activations, then a quantized pass of the same
weights over the same images, anchors and regions at each bit-width of the step. The loss is the mean of the losses of
all passes, as in SSQL (Cao et al., ECCV 2022) and AdaBits (Jin et al., CVPR 2020). Each pass ends with its backward
pass, so no two graphs are ever in memory. In each pass norms use the statistics of its batch; their running statistics
are those of the float passes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from ssql_det.d2 import EventStorage
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.sampling_replay import check_samples, recording_samples, replaying_samples
from ssql_det.detect.training_step import PassLosses, TrainingStep
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.forward import preserving_buffers


class AnyPrecisionStep(TrainingStep):
    """A float pass over each micro-batch, then a pass at each bit-width of the step.

    The ranges are those of all micro-batches, and of all ranks, so micro-batches add up to the whole batch.
    """

    def __init__(
        self, model: nn.Module, training: QuantizedTraining, num_micro_batches: int = 1, is_bfloat16: bool = False
    ) -> None:
        super().__init__(num_micro_batches, is_bfloat16)
        check_samples(model)
        self.training = training
        points = detector_points(model, training.scope, training.scheme.placement)
        self.quantization = Quantization(model, points, training.scheme)
        self.trained["quantizers"] = self.quantization.quantizers

    def __call__(self, model: nn.Module, batches: Iterable[Batch], iteration: int) -> list[PassLosses]:
        bit_widths = self.training.choose_bits(iteration)
        if not bit_widths:
            return super().__call__(model, batches, iteration)
        detector, num_passes = self.quantization.model, 1 + len(bit_widths)
        recorded, kept, samples = [], [], []
        with self.quantization.observing():
            for batch in batches:
                with recording_samples(detector) as sampled:
                    losses = self.run_pass(model, batch, iteration, is_last=False, num_passes=num_passes)
                recorded.append(PassLosses(losses))
                kept.append(batch)
                samples.append(sampled)
        for bits in bit_widths:
            with self.quantizing(bits):
                for index, (batch, sampled) in enumerate(zip(kept, samples, strict=True), 1):
                    is_last = bits is bit_widths[-1] and index == len(kept)
                    with replaying_samples(detector, sampled):
                        losses = self.run_pass(model, batch, iteration, is_last, num_passes)
                    recorded.append(PassLosses(losses, bits))
        return recorded

    @contextmanager
    def quantizing(self, bits: Bits) -> Iterator[None]:
        """Run the detector quantized, in training mode; afterwards its buffers are as before.

        With placement ``integer`` norms are not folded, as their factors are those of the batch. What the engine logs
        is not kept.
        """
        with (
            EventStorage(),
            preserving_buffers(self.quantization.model),
            self.quantization.applying(bits, folded=False),
        ):
            yield
