"""Evaluate a calibrated network at several bit-widths, with one copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from ssql_det.quant.bits import Bits
from ssql_det.quant.forward import Forward, forward_images
from ssql_det.quant.quantization import Quantization
from ssql_det.quant.scheme import NORM_CORRECTION

T = TypeVar("T")


def evaluate_at_bit_widths(
    quantization: Quantization,
    bit_widths: Iterable[Bits],
    evaluate: Callable[[Bits], T],
    overrides: Mapping[str, Bits] | None = None,
    batches: Iterable[Any] = (),
    forward: Forward = forward_images,
) -> Iterator[tuple[Bits, T]]:
    """Yield each bit-width with the result of ``evaluate``. At FP the whole network is float: overrides are ignored.

    ``batches``: images from which norms are corrected, if the scheme requires it and they are not corrected yet at the
    bit-width.

    >>> from ssql_det.quant import Quantization, parse_bit_widths
    >>> quantization = Quantization(model)
    >>> quantization.calibrate(loader)
    >>> bit_widths = parse_bit_widths("FP,8,4")
    >>> results = dict(evaluate_at_bit_widths(quantization, bit_widths, lambda bits: model(images).std()))
    >>> [str(bits) for bits in results]
    ['FP', '8w8a', '4w4a']
    """
    for bits in bit_widths:
        applied_overrides = None if bits == Bits.FP else overrides
        yield (
            bits,
            evaluate_at_bit_width(quantization, bits, partial(evaluate, bits), applied_overrides, batches, forward),
        )


def evaluate_at_bit_width(
    quantization: Quantization,
    bits: Bits,
    evaluate: Callable[[], T],
    overrides: Mapping[str, Bits] | None = None,
    batches: Iterable[Any] = (),
    forward: Forward = forward_images,
) -> T:
    """Return the result of ``evaluate`` at one bit-width. ``overrides``: other bit-widths of some modules, also at FP.

    >>> from ssql_det.quant import Quantization
    >>> quantization = Quantization(model)
    >>> quantization.calibrate(loader)
    >>> evaluate_at_bit_width(quantization, Bits.FP, lambda: model(images), {"layer1.*": Bits(4, 4)}).shape
    torch.Size([4, 192])
    """
    correct_missing_norms(quantization, bits, overrides, lambda: batches, forward)
    with quantization.at(bits, overrides):
        return evaluate()


def correct_missing_norms(
    quantization: Quantization,
    bits: Bits,
    overrides: Mapping[str, Bits] | None,
    get_batches: Callable[[], Iterable[Any]],
    forward: Forward = forward_images,
) -> None:
    """Correct the norms at a bit-width, if the scheme requires it and they are not corrected yet.

    ``get_batches`` is called only then.
    """
    quantization.check_repairs(bits, overrides)
    if NORM_CORRECTION in quantization.list_missing_repairs(bits, overrides):
        quantization.correct_norms(bits, get_batches(), overrides, forward)
