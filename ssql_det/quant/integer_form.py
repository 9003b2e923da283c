"""A quantized network in integers, at one bit-width: what an exported file holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ssql_det.core.errors import UserError
from ssql_det.quant.bits import Bits, format_bits
from ssql_det.quant.folding import IntegerLayer, compute_integer_layers, constant_activation_error
from ssql_det.quant.forward import get_device
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
    """The layers whose weight and input are integers, by path, and the grids of activations.

    ``tensors`` are the repaired norms and biases, by name as in ``Repair``; those of other layers stay float.
    """

    layers: Mapping[str, IntegerLayer]
    activations: Mapping[QuantPoint, ActivationGrid]
    tensors: Mapping[str, Tensor]


def check_integer_scheme(
    scheme: Scheme,
    bit_widths: Iterable[Bits],
    overrides: Mapping[str, Bits] | None = None,
    file: Path | None = None,
) -> None:
    """Raise a ``UserError`` for a scheme, or a bit-width, that has no integer form; full precision needs none.

    ``overrides`` are the bit-widths of modules wherever the others are quantized. ``file``: the quantization file whose
    scheme it is.
    """
    quantized = [bits for bits in bit_widths if bits != Bits.FP]
    if not quantized:
        return
    if scheme.placement != INTEGER:
        advice = f"--scheme '{replace(scheme, placement=INTEGER)}'"
        if file is not None:
            raise UserError(
                f"{file} has placement={scheme.placement}, but integers need placement={INTEGER}; run `ssql-det "
                f"quantize` with {advice}"
            )
        raise UserError(f"integers need placement={INTEGER}; use {advice}")
    if scheme.equalize == YES:
        raise UserError(
            f"{file or scheme}: equalized channels have no integer form; leave equalize={YES} out of the scheme"
        )
    named = {
        **{str(bits): bits for bits in quantized},
        **{f"{key}: {each}": each for key, each in (overrides or {}).items()},
    }
    for name, bits in named.items():
        if bits.weight is None or bits.act is None or max(bits.weight, bits.act) > _MAX_BITS:
            raise UserError(f"{name} has no integer form: weights and activations need 2 to {_MAX_BITS} bits")


@torch.no_grad()
def compute_integer_form(
    quantization: Quantization, bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> IntegerForm:
    """The integers of a calibrated quantization at a bit-width, with its repairs.

    Raises a ``UserError`` if the scheme has no integer form: another placement, equalized channels, more than 8 bits,
    or a quantizer without integers; and if something must be calibrated or repaired first.
    """
    if bits == Bits.FP:
        raise ValueError("the float network has no integers")
    check_integer_scheme(quantization.scheme, [bits], overrides)
    quantization.check_ready(bits, overrides)
    label = format_bits(bits, overrides)
    assigned = assign_bits(quantization.points, bits, overrides)
    point_bits = {point: width for point, width in assigned.items() if width is not None}  # all of them
    get_quantizer = partial(quantization.get_quantizer, label=label)
    model, repair = quantization.model, quantization.get_repair(bits, overrides)
    with repair.overriding_tensors(model):
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
    _check_weights(layers, quantization.scheme, point_bits)
    activations = {}
    for point, width in point_bits.items():
        if not point.is_weight:
            grid = get_quantizer(point).quantize(torch.zeros(1, device=get_device(model)), width)
            if grid is None:
                raise constant_activation_error(point)
            activations[point] = ActivationGrid(float(grid.scale), int(grid.zero_point), width)
    return IntegerForm(layers, activations, {name: tensor.detach() for name, tensor in repair.tensors.items()})


def _check_weights(layers: Mapping[str, IntegerLayer], scheme: Scheme, point_bits: Mapping[QuantPoint, int]) -> None:
    """Raise a ``UserError`` that names the layers whose integers are no 8-bit ones: those of ``centred`` at 8 bits."""
    too_wide = [path for path, each in layers.items() if not _fits(each.integers)]
    if too_wide:
        (bits,) = {width for point, width in point_bits.items() if point.is_weight and point.path == too_wide[0]}
        raise UserError(
            f"{too_wide[0]} ({len(too_wide)} such layer(s)): weight={scheme.weight} has {bits + 1}-bit integers at "
            f"{bits} bits, which do not fit into int8; give these layers 7 bits in a --bits-file, or use weight=minmax "
            "or mse"
        )


def _fits(integers: Tensor) -> bool:
    low, high = integers.aminmax()
    return bool(low >= -128) and bool(high <= 127)
