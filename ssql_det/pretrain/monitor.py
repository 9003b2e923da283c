"""Two looks at a training: do the features collapse, and what do neighbours know of the classes at some bit-widths?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.convert import Input
from ssql_det.pretrain.features import Labelled, features
from ssql_det.pretrain.probe import knn
from ssql_det.quant import Bits, Calibration, Quantization, Scheme, at_widths, quant_points


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


def neighbours(
    backbone: nn.Module, seen: Labelled, asked: Labelled, input: Input, widths: Sequence[Bits], scheme: Scheme
) -> Mapping[str, float]:
    """kNN accuracy of the frozen backbone at each width, by ``knn/4w4a``."""
    calibration = list(seen.first(Calibration().images).batches(input))
    quantization = Quantization(backbone, quant_points(backbone, scheme.placement, input.ends), scheme)
    quantization.calibrate(calibration)

    def accuracy(bits: Bits) -> float:
        known, other = (features(backbone, each.batches(input)) for each in (seen, asked))
        return knn(known, seen.labels, other, asked.labels)

    with torch.no_grad():
        found = at_widths(quantization, widths, accuracy, batches=calibration)
        return {f"knn/{bits}": accuracy for bits, accuracy in found}
