"""Placement ``integer``: simulate norms and biases as an integer machine computes them.

Such a machine adds up products of integers, adds a bias in whole multiples of ``s_x * s_w``, and multiplies the result
by one number per channel. So a norm is folded: it becomes a factor ``g`` per channel, which is multiplied into the
weight's scale (its sign is kept), and a bias in multiples of ``s_x * s_w * |g|``. Weights of few bits are stored
shifted, as ``q * 2**(8-b)``, so that these multiples are finer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.quant.hooks import get_float_weight, overriding_attributes
from ssql_det.quant.points import INTEGER, QuantPoint
from ssql_det.quant.quantizers import Quantizer
from ssql_det.quant.tracing import Chain, Trace

STORED_WEIGHT_BITS = 8
_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class LayerScales:
    """The scale of a layer's input, those of its weight's channels [C], and the weight's bit-width."""

    input: Tensor
    weight: Tensor
    weight_bits: int

    def bias_scale(self, factor: Tensor) -> Tensor:
        """Per channel, where the products are multiplied by ``factor``. Where they vanish any scale will do: 1."""
        weight = torch.where(factor * self.weight == 0, 1, (factor * self.weight).abs())
        return self.input * weight / 2 ** max(STORED_WEIGHT_BITS - self.weight_bits, 0)


def find_foldable_chains(trace: Trace, points: Sequence[QuantPoint]) -> tuple[Chain, ...]:
    """The chains of all quantized layers; an error if the input of one is not quantized."""
    weights = {point.path for point in points if point.is_weight}
    chains = tuple(chain for chain in trace.chains if chain.layer in weights)
    for chain in chains:
        if chain.input_point is None:
            raise UserError(f"the input of {chain.layer} is not quantized, which placement={INTEGER} needs")
    return chains


@contextmanager
def folding_norms(
    model: nn.Module,
    chains: Sequence[Chain],
    point_bits: Mapping[QuantPoint, int | None],
    get_quantizer: Callable[[QuantPoint], Quantizer],
) -> Iterator[None]:
    """In evaluation mode, fold the norms of layers whose weight and input are quantized, and round their biases.

    ``point_bits`` are the bit-widths of the points.
    """
    weight_points = {point.path: point for point in point_bits if point.is_weight}
    with ExitStack() as stack:
        for chain in chains:
            point, source = weight_points[chain.layer], chain.input_point
            weight_bits, input_bits = point_bits[point], point_bits[source] if source is not None else None
            if source is not None and weight_bits is not None and input_bits is not None:
                weight = get_float_weight(model, point)
                quantized_weight = get_quantizer(point).quantize(weight, weight_bits)
                quantized_input = get_quantizer(source).quantize(weight.new_zeros(1), input_bits)
                if quantized_weight is None or quantized_input is None:
                    raise UserError(
                        f"the quantizers of {chain.layer} give no integers, which placement={INTEGER} needs; use others"
                    )
                scales = LayerScales(quantized_input.scale, quantized_weight.scale.flatten(), weight_bits)
                for module, attributes in _compute_folded_attributes(model, chain, scales):
                    stack.enter_context(overriding_attributes(module, **attributes))
        yield


@torch.no_grad()
def _compute_folded_attributes(
    model: nn.Module, chain: Chain, scales: LayerScales
) -> list[tuple[nn.Module, dict[str, Any]]]:
    """The attributes to override in a layer and its norm."""
    layer: Any = model.get_submodule(chain.layer)
    if not chain.norm:
        if layer.bias is None:
            return []
        return [(layer, {"bias": round_bias(layer.bias, scales.bias_scale(torch.ones_like(layer.bias)))})]
    norm: Any = model.get_submodule(chain.norm)
    factor, bias = _compute_factor_and_bias(norm, layer.bias)
    statistics = {"running_mean": torch.zeros_like(bias), "running_var": torch.ones_like(bias), "eps": 0.0}
    affine = {"weight": factor, "bias": round_bias(bias, scales.bias_scale(factor))}
    return [(layer, {"bias": None}), (norm, statistics | affine)]


def round_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias to multiples of its scale, as many as 32 bits can count.

    >>> round_bias(torch.tensor([0.26, -1.0]), torch.tensor([0.1, 0.3]))
    tensor([ 0.3000, -0.9000])
    """
    return torch.round(bias / scale).clamp(-_MAX_INT32, _MAX_INT32) * scale


def _compute_factor_and_bias(norm: Any, layer_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer's bias and its norm in evaluation mode together are ``x * factor + bias``."""
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    mean = norm.running_mean if layer_bias is None else norm.running_mean - layer_bias
    return factor, -mean * factor if norm.bias is None else norm.bias - mean * factor
