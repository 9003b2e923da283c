"""``brecq``: learn the rounding of a block's weights together, so that the outputs of the block stay.

The error of a block is the plain squared one of its outputs; ``brecq-fisher`` has the weighting of the source.

Li et al., "BRECQ: pushing the limit of post-training quantization by block reconstruction", ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssql_det.ptq.method import METHODS, Method


@METHODS.register("brecq")
@dataclass(frozen=True)
class Brecq(Method):
    """Whole blocks, with activations quantized."""
