"""Can a quantization run at a bit-width? The errors that say what must be calibrated or learned first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ssql_det.core.errors import UserError
from ssql_det.quant.points import INTEGER, QuantPoint
from ssql_det.quant.scheme import HOW_TO_LEARN, NORM_CORRECTION, SWITCHABLE_NORMS, YES

if TYPE_CHECKING:
    from ssql_det.quant.quantization import Quantization


def check_calibrated(
    quantization: Quantization, point_bits: Mapping[QuantPoint, int | None], folded: bool = True
) -> None:
    """Raise an error if activations are not calibrated, or a quantizer does not support its bit-width."""
    scheme = quantization.scheme
    activations = [point for point, bits in point_bits.items() if bits is not None and not point.is_weight]
    observers = [each for point in quantization.points if (each := quantization[point].observer) is not None]
    if observers and activations and all(observer.min_val is None for observer in observers):
        raise UserError(f"no activations are calibrated, such as {activations[0].key}; calibrate first")
    if scheme.placement == INTEGER and activations and folded and not quantization.chains:
        raise UserError(f"placement={INTEGER} folds the norms that calibrate() finds; calibrate first")
    is_quantized = any(bits is not None for bits in point_bits.values())
    if scheme.equalize == YES and is_quantized and not quantization.equalization.factors:
        raise UserError("equalize=yes rescales channels by what calibrate() observes; calibrate first")
    for point, bits in point_bits.items():
        supported = quantization[point].supported_bits
        if bits is not None and bits not in supported:
            key = "weight" if point.is_weight else "act"
            raise UserError(
                f"{key}={getattr(scheme, key)} supports {supported[0]} to {supported[-1]} bits, not {bits} at "
                f"{point.key}"
            )


def check_learned(quantization: Quantization, label: str, missing: list[str]) -> None:
    """Raise an error that names the bit-widths there are, if one of the ``missing`` repairs of the bit-width called
    ``label`` must be learned beforehand; norms are computed where they are needed."""
    missing = [each for each in missing if each != NORM_CORRECTION]
    if not missing:
        return
    scheme = quantization.scheme
    if SWITCHABLE_NORMS in missing:
        norms = quantization.switchable_norms
        available = [f"{bits}w" for bits in norms.weight_bits] if norms else []
    else:
        needed = {*scheme.learned_repairs} - {SWITCHABLE_NORMS}
        available = [each for each, repair in quantization.repairs.items() if needed <= {*repair.made}]
    raise UserError(
        f"the scheme {scheme} needs {missing[0]}, which was not learned at {label} (learned at: "
        f"{', '.join(available) or 'none'}); use another bit-width, or {HOW_TO_LEARN[missing[0]]} for this one"
    )
