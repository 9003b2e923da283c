"""Weights of a block's squared errors: the squared gradients of a loss of the network, its Fisher information.

Eq. 10 of BRECQ: if ``dz`` is the error of a block's outputs ``z``, the loss of the network grows by about ``dz H dz``,
and the Hessian ``H`` with respect to ``z`` is approximated by the diagonal of ``(dL/dz)^2``, of each image for itself.

There are no labels, so the loss is the difference between the outputs of the network and of the float network, as in
tuning. Its gradient is 0 at the float network, so it is taken at a quantized one. As in the authors' code, the blocks
up to this one are quantized (the former ones as reconstructed, this one with nearest rounding) and the later ones are
float. So the gradient is that of the errors that there are when this block is learned, and the errors of later blocks,
which will be reconstructed themselves, do not move it. (That code also adds 1 to the gradient, which makes most weights
nearly equal; eq. 10 does not.)

Li et al., "BRECQ: pushing the limit of post-training quantization by block reconstruction", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.ptq.blocks import Block, list_tensors, map_tensors
from ssql_det.ptq.errors import split_outputs


def compute_gradients(model: nn.Module, block: Block, compute_loss: Callable[[], Tensor]) -> list[Tensor]:
    """The gradients of a loss with respect to the outputs of a block, in the order of their tensors.

    ``compute_loss`` runs the network once, as it is at the call. Outputs that the loss does not depend on get zeros. No
    graph is built before the block.
    """
    outputs: list[Tensor] = []

    def cut(value: Any) -> Any:
        cut_off = map_tensors(lambda x: x.detach().requires_grad_(), value)
        outputs.extend(list_tensors(cut_off))
        return map_tensors(torch.clone, cut_off)  # what follows may work in place

    with block.replacing_outputs(model, cut), torch.enable_grad():
        loss = compute_loss()
    if not outputs:
        raise ValueError(f"the loss does not run the block {block.name}")
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in outputs]
    return [*torch.autograd.grad(loss, outputs, allow_unused=True, materialize_grads=True)]


def make_weights(gradients: Sequence[Any], powers: Sequence[Tensor]) -> list[Any] | None:
    """The weights of the squared errors for the gradients of all images, which are overwritten; ``None`` if all are 0.

    ``powers`` are the mean squares of the block's float outputs, which errors are divided by: weights are squared
    gradients with respect to the outputs in these units, so several outputs count as the loss says. Their mean over all
    elements is 1, so the loss of the block keeps its scale, and equal squared gradients are equal to no weights.

    >>> make_weights([torch.tensor([[1.0, -3.0]])], [torch.tensor(4.0)])
    [tensor([[0.2000, 1.8000]])]
    """
    parts = [(tensors, index) for each in gradients for index, tensors in enumerate(split_outputs(each))]
    tensors = [(x, powers[index] / max(powers)) for group, index in parts for x in group if x.numel()]
    # Squares of small gradients would vanish, so the largest one becomes 1.
    largest = max((float(x.abs().max()) for x, _ in tensors), default=0.0)
    if not all(x.isfinite().all() for x, _ in tensors):
        raise UserError("the loss of the quantized network has a gradient that is not finite; use weight=brecq")
    if largest == 0:
        return None
    total = 0.0
    for x, power in tensors:
        x.div_(largest).square_().mul_(power)
        total += float(x.sum(dtype=torch.float64))
    mean = total / sum(x.numel() for x, _ in tensors)
    for x, _ in tensors:
        x.div_(mean)
    return [*gradients]
