"""Quantize a network at several bit-widths into one file, which is saved after each step and resumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.ptq.pipeline import RepairData, RepairResult, make_repairs
from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme
from ssql_det.quant.bits import format_bits
from ssql_det.quant.quantization_file import check_same_points, read_quantization
from ssql_det.quant.scheme import HOW_TO_LEARN, ROUNDING, SWITCHABLE_NORMS, TUNING

SUFFIX = ".safetensors"
_logger = logging.getLogger(__name__)


def quantize_network(
    model: nn.Module,
    points: Sequence[QuantPoint],
    scheme: Scheme,
    calibration: Calibration,
    bit_widths: Sequence[Bits],
    path: Path,
    calibrate: Callable[[Quantization], None],
    make_data: Callable[[], RepairData],
    overrides: Mapping[str, Bits] | None = None,
) -> tuple[Quantization, dict[Bits, RepairResult | None]]:
    """Return the quantization at ``path`` with these bit-widths, and what was made of each; ``None``: it was there.

    If the file exists, with the same scheme, points, weights and calibration, what it lacks is added: an interrupted
    run goes on, to the same bits. ``calibrate`` and ``make_data`` are called only if they are needed.
    """
    scheme.check_bits([*bit_widths, *(overrides or {}).values()])
    if path.exists():
        quantization = _load(model, points, scheme, calibration, path)
    else:
        quantization = Quantization(model, points, scheme)
        quantization.calibration = calibration
        calibrate(quantization)
    results: dict[Bits, RepairResult | None] = dict.fromkeys(bit_widths)
    missing = [bits for bits in bit_widths if quantization.list_missing_repairs(bits, overrides)]
    if missing or not path.exists():
        quantization.save(path)
    data = make_data() if missing else None
    for bits in missing:
        assert data is not None
        _logger.info("repairing at %s: %s", format_bits(bits, overrides), ", ".join(scheme.repairs))
        results[bits] = make_repairs(
            quantization, bits, data, overrides, calibration.seed, lambda: quantization.save(path)
        )
    return quantization, results


def check_role_images(scheme: Scheme, calibration: Calibration) -> None:
    """Raise an error if a repair of the scheme has no images to learn from, or is not learned from images alone.

    >>> check_role_images(Scheme.parse("weight=brecq, norms=matched"), Calibration(256, reconstruction_images=256))
    """
    if SWITCHABLE_NORMS in scheme.repairs:
        raise UserError(
            f"norms={scheme.norms} cannot be made of a trained network: {HOW_TO_LEARN[SWITCHABLE_NORMS]}, or use "
            "norms=matched"
        )
    needing = {ROUNDING: f"weight={scheme.weight}", TUNING: f"tune={scheme.tune}"}
    for name in scheme.repairs:
        if name in needing and not calibration.reconstruction_images:
            raise UserError(f"{needing[name]} needs images for reconstruction; give --reconstruction-images")


def _load(
    model: nn.Module, points: Sequence[QuantPoint], scheme: Scheme, calibration: Calibration, path: Path
) -> Quantization:
    saved, advice = read_quantization(path), "choose another --out"
    if saved.scheme != scheme:
        raise UserError(f"{path} has the scheme {saved.scheme}, not {scheme}; {advice}")
    if saved.calibration != calibration:
        raise UserError(f"{path} was calibrated on {saved.calibration}, not on {calibration}; {advice}")
    quantization = Quantization.load(path, model)
    check_same_points(points, quantization.points, path)
    _logger.info("%s is there; what it lacks is added", path)
    return quantization
