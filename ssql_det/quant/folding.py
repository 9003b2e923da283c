"""Placement ``integer``: simulate norms and biases as integer arithmetic computes them.

Integer arithmetic adds up products of integers, adds a bias in whole multiples of ``s_x * s_w`` (``s_x``, ``s_w``: the
scales of input and weight), and multiplies the result by one factor per channel. So a norm is folded: it becomes a
factor ``g`` per channel, which is multiplied into the weight's scale (sign included), and a bias. A weight of few bits
is stored as ``q * 2**k``, with the largest ``k`` that fits into 8 bits (mostly ``8 - b``), and scale ``s_w / 2**k``, so
the bias is in multiples of ``s_x * s_w * |g| / 2**k``.
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
from ssql_det.quant.points.family import count_output_channels
from ssql_det.quant.quantizers import QuantizedTensor, Quantizer
from ssql_det.quant.tracing import Chain, Trace

_STORED = torch.iinfo(torch.int8)  # a weight of at most 8 bits is stored in this type
_MAX_BIAS = 2**30  # of the 32 bits that add up products; the other half is for these


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


@dataclass(frozen=True)
class IntegerLayer:
    """A quantized layer as integer arithmetic computes it, with its norm folded into it.

    Its weight is ``integers * scale``, with a ``scale`` [C] per output channel that has the sign of the norm's factor.
    ``spare_bits`` is the ``k`` of the integers' factor ``2**k``. ``bias`` [C] is a multiple of ``bias_scale`` [C]; it
    is ``None`` if there is neither a bias nor a norm. The norm multiplies by ``factor`` [C], which is 1 without a norm.
    A channel with factor 0 has integers 0 and a scale that counts as 1. So has one whose factor is so small that its
    bias, in its tiny scale, would not fit into 32 bits.
    """

    chain: Chain
    integers: Tensor
    scale: Tensor
    spare_bits: int
    factor: Tensor
    bias: Tensor | None
    bias_scale: Tensor


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
    with ExitStack() as stack:
        for layer in compute_integer_layers(model, chains, layers, point_bits, get_quantizer, get_weight):
            for module, attributes in _get_folded_attributes(model, layer):
                stack.enter_context(overriding_attributes(module, **attributes))
        yield


@torch.no_grad()
def compute_integer_layers(
    model: nn.Module,
    chains: Sequence[Chain],
    layers: Collection[str],
    point_bits: Mapping[QuantPoint, int | None],
    get_quantizer: Callable[[QuantPoint], Quantizer],
    get_weight: Callable[[QuantPoint], Tensor],
) -> Iterator[IntegerLayer]:
    """The layers of :func:`folding_norms` in integers. A weight or an input that has none is an error."""
    weight_points = {point.path: point for point in point_bits if point.is_weight}
    for chain in (each for each in chains if each.layer in layers):
        weight_point, input_point = weight_points[chain.layer], chain.input_point
        weight_bits = point_bits[weight_point]
        input_bits = None if input_point is None else point_bits[input_point]
        if input_point is not None and weight_bits is not None and input_bits is not None:
            weight = get_weight(weight_point)
            quantized_weight = get_quantizer(weight_point).quantize(weight, weight_bits)
            # Of the input only the scale is used, so any tensor will do.
            quantized_input = get_quantizer(input_point).quantize(weight.new_zeros(1), input_bits)
            if quantized_input is None:
                raise constant_activation_error(input_point)
            if quantized_weight is None or quantized_weight.zero_point.any():
                raise UserError(
                    f"the quantizer of {weight_point.key} gives no integers whose zero point is 0, which "
                    f"placement={INTEGER} needs; use weight=minmax or mse"
                )
            layer = model.get_submodule(chain.layer)
            if quantized_weight.scale.numel() != count_output_channels(layer):
                raise UserError(f"{chain.layer}: placement={INTEGER} has no transposed convs with groups")
            yield _fold(model, chain, quantized_weight, quantized_input.scale)


def constant_activation_error(point: QuantPoint) -> UserError:
    """An activation without integers: all values that were observed are one, so its scale is 0."""
    return UserError(
        f"{point.key} had only one value in the calibration, so it has no integers, which placement={INTEGER} needs; "
        "calibrate with more images"
    )


def _fold(model: nn.Module, chain: Chain, weight: QuantizedTensor, input_scale: Tensor) -> IntegerLayer:
    weight_scale = weight.scale.flatten()
    factor, bias = _compute_factor_and_bias(model, chain, weight_scale)
    scale = factor * weight_scale
    spare_bits = count_spare_bits(weight.integers)
    is_dead = scale == 0
    if bias is not None:
        is_dead |= bias.abs() * 2**spare_bits > _MAX_BIAS * input_scale * scale.abs()
    channels = weight.scale.shape  # broadcasts over the integers
    integers = torch.where(is_dead.reshape(channels), 0, weight.integers)
    bias_scale = input_scale * torch.where(is_dead, 1, scale.abs()) / 2**spare_bits
    return IntegerLayer(
        chain,
        integers * 2**spare_bits,
        torch.where(is_dead, 1, scale) / 2**spare_bits,
        spare_bits,
        factor,
        None if bias is None else round_bias(bias, bias_scale),
        bias_scale,
    )


def count_spare_bits(integers: Tensor) -> int:
    """The largest ``k`` for which ``integers * 2**k`` fit into 8 bits; 0 if they do not fit anyway.

    >>> count_spare_bits(torch.tensor([-8, 7])), count_spare_bits(torch.tensor([-15, 15]))
    (4, 3)
    """
    least, most = (int(bound) for bound in integers.aminmax())
    return max((k for k in range(8) if _STORED.min <= least * 2**k and most * 2**k <= _STORED.max), default=0)


def _get_folded_attributes(model: nn.Module, folded: IntegerLayer) -> list[tuple[nn.Module, dict[str, Any]]]:
    """The attributes to override in a layer and its norm."""
    layer, factor, bias = model.get_submodule(folded.chain.layer), folded.factor, folded.bias
    if not folded.chain.norm:
        return [] if bias is None else [(layer, {"bias": bias})]
    statistics = {"running_mean": torch.zeros_like(factor), "running_var": torch.ones_like(factor), "eps": 0.0}
    norm = model.get_submodule(folded.chain.norm)
    return [(layer, {"bias": None}), (norm, statistics | {"weight": factor, "bias": bias})]


def round_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias to multiples of its scale that fit into 32-bit integers, with room for sums of products.

    >>> round_bias(torch.tensor([0.26, -1.0]), torch.tensor([0.1, 0.3]))
    tensor([ 0.3000, -0.9000])
    """
    return torch.round(bias / scale).clamp(-_MAX_BIAS, _MAX_BIAS) * scale


def _compute_factor_and_bias(model: nn.Module, chain: Chain, weight_scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """A layer and its norm in evaluation mode map ``x``, the layer's output without bias, to ``x * factor + bias``.

    Without a norm the factors are 1.
    """
    layer: Any = model.get_submodule(chain.layer)
    if not chain.norm:
        return torch.ones_like(weight_scale), layer.bias
    norm: Any = model.get_submodule(chain.norm)
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
    return factor, -mean * factor if norm.bias is None else norm.bias - mean * factor
