"""One check in each training step, before the optimizer's: are all losses and gradients finite?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def read_losses(losses: Tensor, network: nn.Module) -> tuple[list[float], bool]:
    """The values of ``losses`` [K], and whether all gradients of the network are finite. A GPU is waited for once.

    >>> network = nn.Linear(2, 1)
    >>> loss = network(torch.tensor([1.0, torch.inf])).sum()
    >>> loss.backward()
    >>> read_losses(torch.tensor([0.5]), network)
    ([0.5], False)
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    norm = get_total_norm(gradients)  # many times as fast on a CPU as looking for values that are not finite
    *values, norm_value = torch.cat([losses.detach().to(norm), norm[None]]).tolist()
    # The norm may also overflow where all gradients are finite.
    return values, math.isfinite(norm_value) or all(gradient.isfinite().all() for gradient in gradients)
