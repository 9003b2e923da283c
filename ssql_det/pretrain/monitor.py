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

    period: int  # epochs
    data: str
    is_data_explicit: bool  # False: MONITOR.DATA is empty, and ``data`` is DATA.TRAIN
    widths: tuple[Bits, ...]
    scheme: Scheme
    images: int  # at most, of each split

    def __post_init__(self) -> None:
        self.scheme.check_bits(self.widths)


class Monitor:
    """The kNN accuracy of a backbone whose training goes on; gallery and query are the train and val split."""

    def __init__(
        self,
        config: MonitorConfig,
        gallery: LabelledImages,
        query: LabelledImages,
        input: InputFormat,
        backbone: nn.Module,
    ) -> None:
        self.period = config.period
        self._widths, self._scheme = config.widths, config.scheme
        self._gallery, self._query, self._input, self._backbone = gallery, query, input, backbone

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Accuracies in percent, under names such as ``knn/4w4a``."""
        calibration = list(self._gallery.first(Calibration().images).batches(self._input))
        points = quant_points(self._backbone, self._scheme.placement, self._input.value_range)
        quantization = Quantization(self._backbone, points, self._scheme)
        quantization.calibrate(calibration)
        results = evaluate_at_bit_widths(quantization, self._widths, lambda _: self._accuracy(), batches=calibration)
        return {f"knn/{bits}": accuracy for bits, accuracy in results}

    def _accuracy(self) -> float:
        gallery, query = (
            extract_features(self._backbone, images.batches(self._input)) for images in (self._gallery, self._query)
        )
        return knn_accuracy(gallery, self._gallery.labels, query, self._query.labels)


def build_monitor(config: MonitorConfig, augmentation: Augmentation, backbone: nn.Module) -> Monitor | None:
    """None, with a line in the log, if MONITOR.DATA is empty and the training images cannot be used: a folder of images
    without labels is enough to pretrain."""
    try:
        splits = [open_images(config.data, split) for split in ("train", "val")]
        gallery, query = (load_labelled_images(images, augmentation, config.images) for images in splits)
    except NoLabelledSplitError as error:
        if config.is_data_explicit:
            raise UserError(f"MONITOR.DATA: {error}") from None
        if is_main():
            _logger.warning(
                "kNN evaluation is skipped: %s has no 'train' and 'val' splits with class folders; set MONITOR.DATA to "
                "a folder that has, or MONITOR.PERIOD 0 to silence this",
                config.data,
            )
        return None
    return Monitor(config, gallery, query, augmentation.input, backbone)
