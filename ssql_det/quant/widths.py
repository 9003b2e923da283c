"""The one loop over bit-widths: a calibrated network at each of them, from one copy of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from ssql_det.quant.bits import Bits
from ssql_det.quant.forward import Forward, forward_images
from ssql_det.quant.quantization import Quantization
from ssql_det.quant.scheme import RE_ESTIMATED

T = TypeVar("T")


def evaluate_at_widths(
    quantization: Quantization,
    widths: Iterable[Bits],
    evaluate: Callable[[Bits], T],
    overrides: Mapping[str, Bits] | None = None,
    batches: Iterable[Any] = (),
    forward: Forward = forward_images,
) -> Iterator[tuple[Bits, T]]:
    """Each width with what ``evaluate`` finds at it. A width called FP is full precision, whatever is overridden.

    ``batches`` are the images that norms are re-estimated from, where the scheme says so and they are not yet.

    >>> for bits, features in evaluate_at_widths(quantization, parse_widths("FP,8,4"), lambda bits: model(images)):
    ...     print(bits, features.norm())
    """
    for bits in widths:
        own = None if bits == Bits.FP else overrides
        yield bits, evaluate_at_width(quantization, bits, partial(evaluate, bits), own, batches, forward)


def evaluate_at_width(
    quantization: Quantization,
    bits: Bits,
    evaluate: Callable[[], T],
    overrides: Mapping[str, Bits] | None = None,
    batches: Iterable[Any] = (),
    forward: Forward = forward_images,
) -> T:
    """What ``evaluate`` finds at one width, with parts of the network at bits of their own.

    >>> evaluate_at_width(quantization, Bits.FP, lambda: model(images), {"layer1.*": Bits(4, 4)})
    """
    if quantization.scheme.norms == RE_ESTIMATED and not quantization.has_norm_statistics(bits, overrides):
        quantization.reestimate_norms(bits, batches, overrides, forward)
    with quantization.at(bits, overrides):
        return evaluate()
