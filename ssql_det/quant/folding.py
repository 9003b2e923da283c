"""Placement ``integer``: simulate norms and biases as integer arithmetic computes them.

Integer arithmetic adds up products of integers, adds a bias in whole multiples of ``s_x * s_w`` (``s_x``, ``s_w``: the
scales of input and weight), and multiplies the result by one factor per channel. So a norm is folded: it becomes a
factor ``g`` per channel, which is multiplied into the weight's scale (sign included), and a bias. A weight of ``b < 8``
bits is stored as ``q * 2**(8-b)`` with scale ``s_w / 2**(8-b)``, so the bias is in multiples of
``s_x * s_w * |g| / 2**(8-b)``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.quant.hooks import overriding_attributes
from ssql_det.quant.points import INTEGER, QuantPoint
from ssql_det.quant.quantizers import Quantizer
from ssql_det.quant.tracing import Chain, Trace

STORED_WEIGHT_BITS = 8  # a weight of fewer bits is stored in 8
_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class LayerScales:
    """The scale of a layer's input, the scales of the channels of the weight [C], and the bit-width of the weight."""

    input: Tensor
    weight: Tensor
    weight_bits: int

    def compute_bias_scale(self, factor: Tensor) -> Tensor:
        """The scale of the bias per channel, if ``factor`` [C] (of the norm, or 1) multiplies the sums of products.

        ``|factor * weight scale|`` counts as 1 where it is 0.
        """
        weight_scale = torch.where(factor * self.weight == 0, 1, (factor * self.weight).abs())
        return self.input * weight_scale / 2 ** max(STORED_WEIGHT_BITS - self.weight_bits, 0)


def find_foldable_chains(trace: Trace, points: Sequence[QuantPoint]) -> tuple[Chain, ...]:
    """Return the chains of all quantized layers; raise an error if the input of a layer is not quantized."""
    layers = {point.path for point in points if point.is_weight}
    chains = tuple(chain for chain in trace.chains if chain.layer in layers)
    for chain in chains:
        if chain.input_point is None:
            raise UserError(
                f"the input of {chain.layer} is not quantized, which placement={INTEGER} needs; add a point"
            )
    return chains


def check_chains(model: nn.Module, chains: Sequence[Chain], points: Sequence[QuantPoint]) -> None:
    """Raise a ``ValueError`` for chains, as of a file, that are not of quantized layers of this model, each once."""
    layers, modules = {point.path for point in points if point.is_weight}, dict(model.named_modules())
    if len({chain.layer for chain in chains} & layers) < len(chains):
        raise ValueError("a chain begins with no quantized layer, or with that of another chain")
    for chain in chains:
        if chain.norm and not hasattr(modules.get(chain.norm), "running_var"):
            raise ValueError(f"{chain.norm} in the chain of {chain.layer} is no norm")


@contextmanager
def folding_norms(
    model: nn.Module,
    chains: Sequence[Chain],
    layers: Collection[str],
    point_bits: Mapping[QuantPoint, int | None],
    get_quantizer: Callable[[QuantPoint], Quantizer],
    get_weight: Callable[[QuantPoint], Tensor],
) -> Iterator[None]:
    """While the context is open, fold the norms of layers whose weight and input are quantized, and round the biases.

    The model must be in evaluation mode. ``layers``: paths of the layers to fold norms into. ``point_bits``: the
    bit-widths of the points; ``None`` means float. ``get_weight``: the float weight that a quantizer gets.
    """
    weight_points = {point.path: point for point in point_bits if point.is_weight}
    with ExitStack() as stack:
        for chain in (each for each in chains if each.layer in layers):
            weight_point, input_point = weight_points[chain.layer], chain.input_point
            weight_bits = point_bits[weight_point]
            input_bits = None if input_point is None else point_bits[input_point]
            if input_point is not None and weight_bits is not None and input_bits is not None:
                weight = get_weight(weight_point)
                quantized_weight = get_quantizer(weight_point).quantize(weight, weight_bits)
                # Of the input only the scale is used, so any tensor will do.
                quantized_input = get_quantizer(input_point).quantize(weight.new_zeros(1), input_bits)
                if quantized_weight is None or quantized_input is None:
                    raise UserError(
                        f"{chain.layer}: the weight or the input has no integers, which placement={INTEGER} needs; "
                        "use other quantizers"
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
        return [(layer, {"bias": round_bias(layer.bias, scales.compute_bias_scale(torch.ones_like(layer.bias)))})]
    norm: Any = model.get_submodule(chain.norm)
    factor, bias = _compute_factor_and_bias(norm, layer.bias)
    statistics = {"running_mean": torch.zeros_like(bias), "running_var": torch.ones_like(bias), "eps": 0.0}
    affine = {"weight": factor, "bias": round_bias(bias, scales.compute_bias_scale(factor))}
    return [(layer, {"bias": None}), (norm, statistics | affine)]


def round_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias to multiples of its scale that fit into 32-bit integers.

    >>> round_bias(torch.tensor([0.26, -1.0]), torch.tensor([0.1, 0.3]))
    tensor([ 0.3000, -0.9000])
    """
    return torch.round(bias / scale).clamp(-_MAX_INT32, _MAX_INT32) * scale


def _compute_factor_and_bias(norm: Any, layer_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The layer's bias and its norm in evaluation mode map ``x``, the layer's output without bias, to
    ``x * factor + bias``."""
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    mean = norm.running_mean if layer_bias is None else norm.running_mean - layer_bias
    return factor, -mean * factor if norm.bias is None else norm.bias - mean * factor
