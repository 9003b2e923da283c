"""The same network in less time: norms folded into their convs, and channels last; temporary, nothing is changed.

A norm goes into weights that are quantized *already*. Folded before, the grid of a channel would be that of other
numbers, mirrored where the norm's weight is negative, and the detector another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssql_det.d2 import FrozenBatchNorm2d
from ssql_det.quant.hooks import shadowed

_FOLDABLE = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


@contextmanager
def fast(model: nn.Module) -> Iterator[None]:
    """Inside, the evaluation mode of ``model`` is faster, and equal but for the rounding of floats.

    The innermost of blocks: what weights and statistics are now is taken.

    >>> with quantization.at(Bits(4, 4)), fast(model), torch.no_grad():
    ...     detections = model(images)
    """
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                stack.enter_context(shadowed(layer, **_faster(layer)))
        yield


@torch.no_grad()
def _faster(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """Weight, and where a norm is folded also bias and norm, to stand in for a layer's own."""
    norm: Any = getattr(layer, "norm", None)
    if isinstance(layer, nn.ConvTranspose2d) or not isinstance(norm, _FOLDABLE):
        return {"weight": _laid_out(layer.weight)}
    statistics: tuple[Any, ...] = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
    return {"weight": _laid_out(weight), "bias": bias.detach(), "norm": None}


def _laid_out(weight: Tensor) -> Tensor:
    """As convs on the CPU are fastest; their inputs and outputs follow. On a GPU nobody has measured it."""
    format = torch.channels_last if weight.device.type == "cpu" else torch.contiguous_format
    return weight.detach().contiguous(memory_format=format)
