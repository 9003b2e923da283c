"""``adaround``: learn the rounding of each layer's weights alone, so that the outputs of the layer stay.

The inputs are those in the quantized network, the targets those of the float network ("asymmetric" in the source). A
layer's outputs are those of its module: where this has a norm or an activation inside, after these.

Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssql_det.ptq.blocks import Block
from ssql_det.ptq.method import METHODS, Method


@METHODS.register("adaround")
@dataclass(frozen=True)
class AdaRound(Method):
    """Layer by layer, in the order of the blocks."""

    def split_blocks(self, blocks: Sequence[Block], layers: Sequence[str]) -> tuple[Block, ...]:
        return tuple(layer for block in blocks for layer in block.split_layers(layers))
