"""Any-precision training: one copy of a detector's weights is trained in float and at other bit-widths in each step.

A step is a float pass over the batch, which observes the ranges of activations, then a quantized pass of the same
weights over the same images, anchors and regions at each bit-width of the step. The loss is the mean of the losses of
all passes, as in SSQL (Cao et al., ECCV 2022) and AdaBits (Jin et al., CVPR 2020). Each pass ends with its backward
pass, so no two graphs are ever in memory. In each pass norms use the statistics of its batch; their running statistics
are those of the float passes alone. With switchable norms each bit-width of weights has a set of norms, with running
statistics of its own passes; the float norms are then trained by the float passes alone. Quantized passes may also be
trained towards the float pass's outputs (distillation).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from ssql_det.core.distributed import average_gradients, is_main
from ssql_det.d2 import CfgNode, EventStorage
from ssql_det.detect.detector_outputs import DetectorOutputs, OutputRecord, recording_outputs
from ssql_det.detect.distillation_terms import distillation_loss
from ssql_det.detect.evaluation_data import Batch, select_calibration_images
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import QuantizationSettings, calibrate_detector, describe_calibration
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.sampling_replay import check_samples, recording_samples, replaying_samples
from ssql_det.detect.training_step import PassLosses, TrainingStep
from ssql_det.quant import Bits, Calibration, Quantization
from ssql_det.quant.forward import preserving_buffers
from ssql_det.quant.scheme import SWITCHABLE
from ssql_det.quant.training import QUANTIZATION_NAME, QuantizerTraining


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
        self.quantizers = QuantizerTraining(self.quantization, training.quantizer_optim)
        self.trained["quantizers"] = self.quantizers.module
        if training.scheme.norms == SWITCHABLE:
            self.switchable_norms = self.quantization.add_switchable_norms(training.weight_bits)
            self.trained["norms"] = self.switchable_norms
            self.has_unused_parameters = True  # the float norms' in quantized passes

    def __call__(self, model: nn.Module, batches: Iterable[Batch], iteration: int) -> list[PassLosses]:
        bit_widths = self.training.choose_bits(iteration)
        if not bit_widths:
            return super().__call__(model, batches, iteration)
        if self.switchable_norms is not None and iteration == self.training.start:
            self.switchable_norms.start_from(self.quantization.model)
        detector, num_passes = self.quantization.model, 1 + len(bit_widths)
        recorded, kept = [], []
        with self.quantization.observing(restart=False):
            for batch in batches:
                with recording_samples(detector) as samples, self._recording_outputs() as outputs:
                    losses = self.run_pass(model, batch, iteration, is_last=False, num_passes=num_passes)
                recorded.append(PassLosses(losses))
                kept.append((batch, samples, None if outputs is None else outputs.collect().detach()))
        for bits in bit_widths:
            with self.quantizing(bits):
                for index, (batch, samples, target) in enumerate(kept, 1):
                    is_last = bits is bit_widths[-1] and index == len(kept)
                    with replaying_samples(detector, samples), self._recording_outputs() as outputs:
                        distill = partial(self._distill, outputs, target)
                        losses = self.run_pass(model, batch, iteration, is_last, num_passes, distill)
                    recorded.append(PassLosses(losses, bits))
        average_gradients(self.trained.parameters())
        return recorded

    def _recording_outputs(self) -> AbstractContextManager[OutputRecord | None]:
        with_features = "features" in self.training.distillation_terms
        detector, is_distilled = self.quantization.model, self.training.distillation > 0
        return recording_outputs(detector, with_features) if is_distilled else nullcontext()

    def _distill(self, outputs: OutputRecord | None, target: DetectorOutputs | None) -> dict[str, Tensor]:
        """The loss of a quantized pass towards the outputs of the float pass over the same anchors and regions."""
        if outputs is None or target is None:
            return {}
        loss = distillation_loss(outputs.collect(), target, self.training.distillation_terms)
        return {"loss_distillation": self.training.distillation * loss}

    def save_trained(self, cfg: CfgNode, folder: Path) -> None:
        """Write the quantization, calibrated as a sweep does it, if the training gave it norms or parameters."""
        if self.state_dict():
            settings = QuantizationSettings(self.training.scope, Calibration(cfg.SSQL_DET.CALIB_IMAGES))
            images = select_calibration_images(cfg, settings.calibration)
            self.quantization.calibration = describe_calibration(cfg, settings, images)
            calibrate_detector(self.quantization, images, restart=False)
            if is_main():
                self.quantization.save(folder / QUANTIZATION_NAME)

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
