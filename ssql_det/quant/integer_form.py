"""A quantized network in integers, at one bit-width: what an exported file holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ssql_det.core.errors import UserError
from ssql_det.quant.bits import Bits, format_bits
from ssql_det.quant.folding import IntegerLayer, compute_integer_layers
from ssql_det.quant.points import INTEGER, QuantPoint, assign_bits
from ssql_det.quant.quantization import Quantization
from ssql_det.quant.scheme import YES, Scheme

_MAX_BITS = 8  # of integers that machines multiply


@dataclass(frozen=True)
class ActivationGrid:
    """The grid of an activation: an integer ``q`` from 0 to ``2**bits - 1`` stands for ``(q - zero_point) * scale``."""

    scale: float
    zero_point: int
    bits: int


@dataclass(frozen=True)
class IntegerForm:
    """The layers whose weight and input are integers, by path, and the grids of activations."""

    layers: Mapping[str, IntegerLayer]
    activations: Mapping[QuantPoint, ActivationGrid]


def check_integer_scheme(scheme: Scheme, bit_widths: Iterable[Bits]) -> None:
    """Raise a ``UserError`` for a scheme, or a bit-width, that has no integer form; full precision needs none."""
    quantized = [bits for bits in bit_widths if bits != Bits.FP]
    if quantized and scheme.placement != INTEGER:
        given = "" if scheme == Scheme() else f"{scheme}, "
        raise UserError(f"integers need placement={INTEGER}; use --scheme '{given}placement={INTEGER}'")
    if quantized and scheme.equalize == YES:
        raise UserError(f"{scheme}: equalized channels have no integer form; leave equalize={YES} out")
    for bits in quantized:
        if bits.weight is None or bits.act is None or max(bits.weight, bits.act) > _MAX_BITS:
            raise UserError(f"{bits} has no integer form: weights and activations need 2 to {_MAX_BITS} bits")


@torch.no_grad()
def compute_integer_form(
    quantization: Quantization, bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> IntegerForm:
    """The integers of a calibrated quantization at a bit-width, with its repairs.

    Raises a ``UserError`` if the scheme has no integer form: another placement, equalized channels, more than 8 bits,
    or a quantizer without integers.
    """
    scheme = quantization.scheme
    check_integer_scheme(scheme, [bits, *(overrides or {}).values()])
    quantization.check_repairs(bits, overrides)
    label = format_bits(bits, overrides)
    point_bits = assign_bits(quantization.points, bits, overrides)
    for point, width in point_bits.items():
        if width is None or width > _MAX_BITS:
            raise UserError(
                f"{point.key} has {width or 'no'} bits at {label}; integers need 2 to {_MAX_BITS} everywhere"
            )
    get_quantizer = partial(quantization.get_quantizer, label=label)
    model = quantization.model
    with quantization.get_repair(bits, overrides).overriding_tensors(model):
        layers = {
            layer.chain.layer: layer
            for layer in compute_integer_layers(
                model,
                quantization.chains,
                {point.path for point in point_bits},
                point_bits,
                get_quantizer,
                quantization.get_weight,
            )
        }
    for path, layer in layers.items():
        if layer.integers.dtype != torch.int8 and not -128 <= layer.integers.min() <= layer.integers.max() <= 127:
            raise UserError(f"{path}: weight={scheme.weight} does not fit into 8 bits at {label}; use fewer bits")
    activations = {}
    for point, width in point_bits.items():
        if not point.is_weight:
            assert width is not None
            grid = get_quantizer(point).quantize(torch.zeros(1), width)
            if grid is None:
                raise UserError(f"{point.key}: act={scheme.act} has no integers there; calibrate with more images")
            activations[point] = ActivationGrid(float(grid.scale), int(grid.zero_point), width)
    return IntegerForm(layers, activations)
