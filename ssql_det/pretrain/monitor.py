"""Two looks at a training: do the features collapse, and what do neighbours know of the classes at some bit-widths?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.pretrain.data import open_images
from ssql_det.pretrain.features import features, labelled
from ssql_det.pretrain.probe import knn
from ssql_det.quant import Bits, Calibration, Quantization, Scheme, at_widths, quant_points
from ssql_det.ssl.views import Recipe


@dataclass(frozen=True)
class Monitoring:
    """The keys of ``MONITOR``: how often neighbours are asked, at which widths, and of which images."""

    period: int  # epochs
    data: str
    widths: tuple[Bits, ...]
    scheme: Scheme
    images: int  # of each split at most

    def __post_init__(self) -> None:
        self.scheme.require_widths(self.widths)


def spread(features: Tensor) -> float:
    """Near 1 where features [N, D] point everywhere, 0 where all are one: the standard deviation of each normalized
    feature, times ``sqrt(D)`` (Chen and He, CVPR 2021).

    >>> spread(torch.randn(4096, 128))
    0.99
    """
    return float(F.normalize(features.detach().float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5)


class Looks:
    """kNN accuracy of the frozen backbone at some bit-widths, now and then, by ``knn/4w4a``."""

    def __init__(self, monitoring: Monitoring, recipe: Recipe, backbone: nn.Module) -> None:
        self.period = monitoring.period
        self._widths, self._scheme = monitoring.widths, monitoring.scheme
        self._backbone, self._input = backbone, recipe.input
        splits = [open_images(monitoring.data, split) for split in ("train", "val")]
        self._seen, self._asked = (labelled(images, recipe, monitoring.images) for images in splits)

    @torch.no_grad()
    def take(self) -> dict[str, float]:
        calibration = list(self._seen.first(Calibration().images).batches(self._input))
        points = quant_points(self._backbone, self._scheme.placement, self._input.ends)
        quantization = Quantization(self._backbone, points, self._scheme)
        quantization.calibrate(calibration)
        found = at_widths(quantization, self._widths, lambda _: self._accuracy(), batches=calibration)
        return {f"knn/{bits}": accuracy for bits, accuracy in found}

    def _accuracy(self) -> float:
        known, other = (features(self._backbone, each.batches(self._input)) for each in (self._seen, self._asked))
        return knn(known, self._seen.labels, other, self._asked.labels)
