"""Two looks at a training: do the features collapse, and what do neighbours know of the classes at some bit-widths?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.convert import Input
from ssql_det.pretrain.features import Labelled, features
from ssql_det.pretrain.probe import knn
from ssql_det.quant import Bits, calibrate, quant_points, quantized

_CALIBRATION = 256  # images


def spread(features: Tensor) -> float:
    """Near 1 where features [N, D] point everywhere, 0 where all are one: the standard deviation of each normalized
    feature, times ``sqrt(D)`` (Chen and He, CVPR 2021).

    >>> spread(torch.randn(4096, 128))
    0.99
    """
    return float(F.normalize(features.detach().float(), dim=1).std(dim=0).mean() * features.shape[1] ** 0.5)


def neighbours(
    backbone: nn.Module, seen: Labelled, asked: Labelled, input: Input, widths: Sequence[Bits]
) -> Mapping[str, float]:
    """kNN accuracy of the frozen backbone at each width, by ``knn/4w4a``."""
    points = quant_points(backbone)
    ranges = calibrate(backbone, list(seen.first(_CALIBRATION).batches(input)), points)
    found = {}
    for bits in widths:
        with torch.no_grad(), quantized(backbone, points, ranges, bits):
            known, other = (features(backbone, each.batches(input)) for each in (seen, asked))
        found[f"knn/{bits}"] = knn(known, seen.labels, other, asked.labels)
    return found
