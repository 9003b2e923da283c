"""kNN evaluation of the backbone during pretraining, at several bit-widths."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from ssql_det.convert import InputFormat
from ssql_det.core.distributed import is_main
from ssql_det.core.errors import UserError
from ssql_det.pretrain.classifiers import knn_accuracy
from ssql_det.pretrain.data import NoLabelledSplitError, open_images
from ssql_det.pretrain.features import LabelledImages, extract_features, load_labelled_images
from ssql_det.quant import Bits, Calibration, Quantization, Scheme, evaluate_at_bit_widths, quant_points
from ssql_det.ssl.augmentations import Augmentation

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MonitorConfig:
    """The config node ``MONITOR``: how often to evaluate, at which bit-widths, on which images."""

    period: int  # epochs from one evaluation to the next
    data: str  # as for open_images
    is_data_explicit: bool  # False: MONITOR.DATA is empty, so ``data`` is DATA.TRAIN
    bit_widths: tuple[Bits, ...]
    scheme: Scheme
    max_images: int  # of each split

    def __post_init__(self) -> None:
        self.scheme.check_bits(self.bit_widths)


class Monitor:
    """Measures the kNN accuracy of a backbone during its training, with the train split as gallery and val as
    queries."""

    def __init__(
        self,
        config: MonitorConfig,
        gallery: LabelledImages,
        query: LabelledImages,
        input_format: InputFormat,
        backbone: nn.Module,
    ) -> None:
        self.period = config.period
        self._bit_widths, self._scheme = config.bit_widths, config.scheme
        self._gallery, self._query, self._input_format, self._backbone = gallery, query, input_format, backbone

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Accuracies in percent, under names such as ``knn/4w4a``."""
        calibration_batches = list(self._gallery.take_first(Calibration().images).batches(self._input_format))
        points = quant_points(self._backbone, self._scheme.placement, self._input_format.value_range)
        quantization = Quantization(self._backbone, points, self._scheme)
        quantization.calibrate(calibration_batches)
        results = evaluate_at_bit_widths(
            quantization, self._bit_widths, lambda _: self._measure_accuracy(), batches=calibration_batches
        )
        return {f"knn/{bits}": accuracy for bits, accuracy in results}

    def _measure_accuracy(self) -> float:
        gallery, query = (
            extract_features(self._backbone, images.batches(self._input_format))
            for images in (self._gallery, self._query)
        )
        return knn_accuracy(gallery, self._gallery.labels, query, self._query.labels)


def build_monitor(config: MonitorConfig, augmentation: Augmentation, backbone: nn.Module) -> Monitor | None:
    """Build a monitor; None, with a warning, if MONITOR.DATA is empty and the images of DATA.TRAIN lack a split or
    labels, which pretraining itself does not need."""
    try:
        splits = [open_images(config.data, split) for split in ("train", "val")]
        gallery, query = (load_labelled_images(images, augmentation, config.max_images) for images in splits)
    except NoLabelledSplitError as error:
        if config.is_data_explicit:
            raise UserError(f"MONITOR.DATA: {error}") from None
        if is_main():
            _logger.warning(
                "kNN evaluation is skipped: %s has no 'train' and 'val' splits with class folders; set MONITOR.DATA to "
                "a folder that has both, or MONITOR.PERIOD to 0 to disable kNN evaluation",
                config.data,
            )
        return None
    return Monitor(config, gallery, query, augmentation.input_format, backbone)
