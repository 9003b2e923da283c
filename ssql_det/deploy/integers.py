"""A copy of a network whose layers compute with integers, as ONNX's QuantizeLinear and DequantizeLinear express them.

Between a DequantizeLinear in front and a QuantizeLinear behind it, a runtime replaces a layer by one that multiplies
integers. All integers, scales and zero points are those of the simulation, see ``ssql_det.quant.integer_form``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.deploy.operators import dequantize, quantize_dequantize
from ssql_det.quant.folding import IntegerLayer
from ssql_det.quant.hooks import hooking
from ssql_det.quant.integer_form import ActivationGrid, IntegerForm

Quantize = Callable[[Tensor], Tensor]


@contextmanager
def computing_integers(model: nn.Module, form: IntegerForm) -> Iterator[list[str]]:
    """Replace the weights and norms of a network on the CPU by their integers, for good; inside, quantize its
    activations.

    The list gets the key of the point of each activation that is quantized in a pass, in their order, and ``""`` for
    one that has no point of its own.
    """
    keys: list[str] = []

    def quantize(x: Tensor, grid: ActivationGrid, key: str = "") -> Tensor:
        keys.append(key)
        return quantize_dequantize(x, grid.scale, grid.zero_point, 2**grid.bits - 1)

    for name, tensor in form.tensors.items():
        _replace_tensor(model, name, tensor.cpu())
    for path, layer in form.layers.items():
        point = layer.chain.output_point
        grid = None if point is None else form.activations.get(point)
        is_kept = layer.chain.activation in ("", "relu")  # which a grid from 0 on includes
        _replace_layer(model, path, layer, partial(quantize, grid=grid) if grid is not None and is_kept else None)
    with ExitStack() as stack:
        for point, grid in form.activations.items():
            stack.enter_context(hooking(model, point, partial(quantize, grid=grid, key=point.key)))
        yield keys


def _replace_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter, which may be ``None``, or a buffer."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, attribute, nn.Parameter(tensor) if attribute in module._parameters else tensor)


def _replace_layer(model: nn.Module, path: str, integers: IntegerLayer, quantize: Quantize | None) -> None:
    """Give a layer integers in place of its weight and bias; its norm becomes the identity.

    ``quantize`` quantizes its result.
    """
    layer: Any = model.get_submodule(path)
    if integers.chain.norm:
        parent, _, name = integers.chain.norm.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    weight, scale, bias = integers.integers.to(torch.int8), integers.scale, integers.bias
    bias_scale = integers.bias_scale * scale.sign()  # in the unit of the sums of products
    bias_integers = None if bias is None else torch.round(bias / bias_scale).to(torch.int32)
    layer.weight = layer.bias = None
    if isinstance(layer, nn.ConvTranspose2d):
        _check_transposed(path, layer)
        repeats = layer.kernel_size[0] * layer.kernel_size[1]
        weight = weight.permute(1, 2, 3, 0).reshape(-1, layer.in_channels, 1, 1)
        scale, bias_scale = scale.repeat_interleave(repeats), bias_scale.repeat_interleave(repeats)
        bias_integers = None if bias_integers is None else bias_integers.repeat_interleave(repeats)
    if isinstance(layer, nn.Linear):
        weight, bias_scale = weight.T.contiguous(), -bias_scale
    buffers = {"integers": weight, "scale": scale, "bias_integers": bias_integers, "bias_scale": bias_scale}
    for name, tensor in buffers.items():
        layer.register_buffer(name, None if tensor is None else tensor.cpu())
    layer.forward = partial(_forward, layer, quantize)


def _check_transposed(path: str, layer: nn.ConvTranspose2d) -> None:
    plain = (layer.padding, layer.output_padding, layer.dilation) == ((0, 0), (0, 0), (1, 1))
    if layer.kernel_size != layer.stride or layer.stride[0] != layer.stride[1] or not plain:
        raise UserError(f"{path}: a transposed conv has integers only if its kernel is as large as its stride")


def _forward(layer: Any, quantize: Quantize | None, x: Tensor) -> Tensor:
    bias = None if layer.bias_integers is None else dequantize(layer.bias_integers, layer.bias_scale, 0)
    if isinstance(layer, nn.Linear):
        product = x @ dequantize(layer.integers, layer.scale, 1)
        # onnxruntime multiplies integers in a MatMul but not in a Gemm, which it makes of a MatMul and an Add.
        return product if bias is None else product - bias
    weight = dequantize(layer.integers, layer.scale, 0)
    if isinstance(layer, nn.ConvTranspose2d):
        x = F.conv2d(x, weight, bias)
        if quantize is not None:  # in front of the shuffle, or the conv would have a float result
            x = quantize(x)
        return F.pixel_shuffle(x, layer.stride[0])
    x = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    activation = getattr(layer, "activation", None)
    return x if activation is None else activation(x)
