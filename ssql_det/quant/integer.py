"""Placement ``integer``: a layer's norm and bias as an integer machine has them, for the simulation to have them too.

Such a machine adds up products of integers, and a bias in whole steps of ``s_x * s_w``; what comes out it multiplies by
a number a channel. So a norm becomes a factor ``g``, which goes into the weight's scale with its sign, and a bias in
steps of ``s_x * s_w * |g|``. Weights of few bits are carried shifted, as ``q * 2**(8-b)``, so that the steps are finer.
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

CARRIED_BITS = 8
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Scales:
    """Of a layer's input, and of its weight in each channel [C]; ``weight_bits`` are those of the weight."""

    input: Tensor
    weight: Tensor
    weight_bits: int

    def steps(self, factor: Tensor) -> Tensor:
        """Of the bias, by channel, where a factor follows the products. Without products any step serves: scale 1."""
        weight = torch.where(factor * self.weight == 0, 1, (factor * self.weight).abs())
        return self.input * weight / 2 ** max(CARRIED_BITS - self.weight_bits, 0)


def find_chains(trace: Trace, points: Sequence[QuantPoint]) -> tuple[Chain, ...]:
    """The layers that an integer machine computes; an input that lies on no grid is an error."""
    weights = {point.path for point in points if point.is_weight}
    chains = tuple(chain for chain in trace.chains if chain.layer in weights)
    for chain in chains:
        if chain.source is None:
            raise UserError(f"the input of {chain.layer} lies on no grid, which placement={INTEGER} needs")
    return chains


@contextmanager
def folded(
    model: nn.Module,
    chains: Sequence[Chain],
    widths: Mapping[QuantPoint, int | None],
    quantizer: Callable[[QuantPoint], Quantizer],
) -> Iterator[None]:
    """Inside, in evaluation mode, norms are factors and biases whole steps, where weight and input have widths."""
    weights = {point.path: point for point in widths if point.is_weight}
    with ExitStack() as stack:
        for chain in chains:
            point, source = weights[chain.layer], chain.source
            width, act = widths[point], widths[source] if source is not None else None
            if source is not None and width is not None and act is not None:
                weight = quantizer(point).quantize(get_float_weight(model, point), width)
                grid = quantizer(source).quantize(get_float_weight(model, point).new_zeros(1), act)
                if weight is None or grid is None:
                    raise UserError(f"{chain.layer} has no integers by its quantizers: placement={INTEGER} needs them")
                scales = Scales(grid.scale, weight.scale.flatten(), width)
                for module, others in _stand_ins(model, chain, scales):
                    stack.enter_context(overriding_attributes(module, **others))
        yield


@torch.no_grad()
def _stand_ins(model: nn.Module, chain: Chain, scales: Scales) -> list[tuple[nn.Module, dict[str, Any]]]:
    """What attributes of a layer and its norm are inside."""
    layer: Any = model.get_submodule(chain.layer)
    if not chain.norm:
        if layer.bias is None:
            return []
        return [(layer, {"bias": rounded(layer.bias, scales.steps(torch.ones_like(layer.bias)))})]
    norm: Any = model.get_submodule(chain.norm)
    factor, bias = _factor_and_bias(norm, layer.bias)
    plain = {"running_mean": torch.zeros_like(bias), "running_var": torch.ones_like(bias), "eps": 0.0}
    own = {"weight": factor, "bias": rounded(bias, scales.steps(factor))}
    return [(layer, {"bias": None}), (norm, plain | own)]


def rounded(bias: Tensor, steps: Tensor) -> Tensor:
    """To whole steps, as many as 32 bits count.

    >>> rounded(torch.tensor([0.26, -1.0]), torch.tensor([0.1, 0.3]))
    tensor([ 0.3000, -0.9000])
    """
    return torch.round(bias / steps).clamp(-_MOST, _MOST) * steps


def _factor_and_bias(norm: Any, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """A norm in evaluation mode is ``x * factor + bias``; the layer's own bias goes into it."""
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return factor, -mean * factor if norm.bias is None else norm.bias - mean * factor
