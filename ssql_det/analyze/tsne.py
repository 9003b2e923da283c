"""t-SNE of features (van der Maaten and Hinton, JMLR 2008), by scikit-learn."""

from __future__ import annotations

import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor


def tsne(features: Tensor, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Points [N, 2] for features [N, D]. The perplexity is at most a third of the number of features.

    >>> tsne(torch.randn(12, 8)).shape
    torch.Size([12, 2])
    """
    is_collapsed = not features.std(dim=0).any()  # without variance there are no principal components
    embedding = TSNE(
        perplexity=min(perplexity, (len(features) - 1) / 3),
        init="random" if is_collapsed else "pca",
        random_state=seed,
    )
    with threadpool_limits(1):  # the order of parallel sums, and so the result, depends on the number of threads
        return torch.from_numpy(embedding.fit_transform(features.numpy()))
