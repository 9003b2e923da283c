"""Smooth the measured losses of one part of a network over bit-widths: the AP of some images is noisy."""

from __future__ import annotations

from collections.abc import Sequence

from ssql_det.quant import Bits

_FLOAT_BITS = 32
_LEAST = 1 / 16  # part of a loss that one bit more leaves


def smooth_losses(choices: Sequence[Bits], losses: Sequence[float]) -> list[float]:
    """Losses that are not negative and fall with the bits, from the measured loss of each choice of bit-widths.

    Each is the mean of the greatest loss at as many bits or more and of the least loss at as many bits or fewer, so
    losses that fall already stay as they are. And each is at least a sixteenth, per bit, of the loss at fewer bits:
    without that, noise would let many bit-widths lose nothing.

    >>> smooth_losses([Bits(8, 8), Bits(5, 5), Bits(4, 4), Bits(3, 3)], [-0.1, 0.6, 0.4, 4.0])
    [0.0001220703125, 0.5, 0.5, 4.0]
    """
    bits = [count_bits(each) for each in choices]
    coarser = [[index for index, other in enumerate(bits) if _is_finer(each, other)] for each in bits]  # or equal
    finer = [[index for index, other in enumerate(bits) if _is_finer(other, each)] for each in bits]
    means = []
    for at_fewer, at_more in zip(coarser, finer, strict=True):
        least = min(losses[index] for index in at_fewer)
        greatest = max(losses[index] for index in at_more)
        means.append((max(least, 0.0) + max(greatest, 0.0)) / 2)
    return [
        max(means[index] * _LEAST ** max(own[0] - bits[index][0], own[1] - bits[index][1]) for index in at_fewer)
        for own, at_fewer in zip(bits, coarser, strict=True)
    ]


def count_bits(bits: Bits) -> tuple[int, int]:
    """Of weights and of activations; float has 32.

    >>> count_bits(Bits(4, None))
    (4, 32)
    """
    return bits.weight or _FLOAT_BITS, bits.act or _FLOAT_BITS


def _is_finer(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the first has at least as many bits for weights and for activations."""
    return first[0] >= second[0] and first[1] >= second[1]
