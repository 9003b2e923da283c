"""t-SNE of features (van der Maaten and Hinton, JMLR 2008), by scikit-learn."""

from __future__ import annotations

import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor


def tsne(features: Tensor, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Embed features [N, D] in the plane: coordinates [N, 2]. A perplexity above (N - 1) / 3 is reduced to it.

    >>> tsne(torch.randn(12, 8)).shape
    torch.Size([12, 2])
    """
    is_collapsed = not features.std(dim=0).any()  # PCA fails on features without variance
    estimator = TSNE(
        perplexity=min(perplexity, (len(features) - 1) / 3),
        init="random" if is_collapsed else "pca",
        random_state=seed,
    )
    with threadpool_limits(1):  # the order of parallel sums, and so the result, depends on the number of threads
        return torch.from_numpy(estimator.fit_transform(features.numpy()))
