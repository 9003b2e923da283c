"""Matching predictions (anchors, proposals) to ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class Matcher:
    """Labels each prediction by the quality of its best match: ``labels[i]`` between the thresholds i - 1 and i.

    ``allow_low_quality_matches`` also labels as positive the best predictions of each ground truth, including ties.

    >>> Matcher([0.3, 0.7], [0, -1, 1])(torch.tensor([[0.1, 0.5, 0.9]]))
    (tensor([0, 0, 0]), tensor([ 0, -1,  1], dtype=torch.int8))
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        self.thresholds = [-float("inf"), *thresholds, float("inf")]
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches
        assert thresholds[0] > 0
        assert all(low <= high for low, high in pairwise(self.thresholds))
        assert all(label in (-1, 0, 1) for label in labels)
        assert len(labels) == len(thresholds) + 1

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The matched indices and labels of N predictions, from nonnegative qualities [M ground truths, N]."""
        quality = match_quality_matrix
        assert quality.dim() == 2
        if quality.numel() == 0:  # without ground truth all predictions have the lowest quality
            count = quality.size(1)
            matches = torch.zeros(count, dtype=torch.int64, device=quality.device)
            return matches, torch.full((count,), self.labels[0], dtype=torch.int8, device=quality.device)
        assert (quality >= 0).all()
        best, matches = quality.max(dim=0)
        match_labels = torch.ones_like(matches, dtype=torch.int8)
        for label, (low, high) in zip(self.labels, pairwise(self.thresholds), strict=True):
            match_labels[(best >= low) & (best < high)] = label
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, quality)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Label every ground truth's best predictions as positive, in place; their matched index does not change."""
        best = match_quality_matrix.max(dim=1, keepdim=True).values
        match_labels[(match_quality_matrix == best).any(dim=0)] = 1
