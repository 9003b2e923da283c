"""Vision transformers (Dosovitskiy et al., ICLR 2021) of timm and torchvision.

Points: the patch embedding's weight at 8 bits; in each block the input and the weight of ``qkv``, of the projection
after the attention and of both layers of the MLP. Residual sums, norms and the classifier stay float. The operands of
the attention products are quantized in timm's networks, where they are arguments of a function that the attention
module calls itself; torchvision's products are inside ``nn.MultiheadAttention`` and stay float, as does the input of
its output projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ssql_det.quant.points.family import FAMILIES, STEM_BITS, Family, Range, join_path, named_layers
from ssql_det.quant.points.point import QuantPoint, Side


class _Product(NamedTuple):
    """A call of the function that multiplies queries, keys or values; ``call`` is as in ``QuantPoint``."""

    function: str
    call: int | None
    num_operands: int


_FUSED_PRODUCTS = (_Product("scaled_dot_product_attention", call=None, num_operands=3),)
# Queries and keys, then attention weights and values.
_SEPARATE_PRODUCTS = (_Product("matmul", call=0, num_operands=2), _Product("matmul", call=1, num_operands=2))


class VisionTransformers(Family):
    """Only for the published placement, in which the image stays float."""

    def matches(self, model: nn.Module) -> bool:
        return any(map(_find_attention, model.modules()))

    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        for path in self.find_blocks(model):
            block = model.get_submodule(path)
            attention = _find_attention(block)
            if not attention:
                yield QuantPoint(path, Side.WEIGHT, STEM_BITS)
                continue
            attention_path = join_path(path, attention)
            if isinstance(block.get_submodule(attention), nn.MultiheadAttention):
                names = [name for name, _ in block.named_children()]
                norm = names[names.index(attention) - 1]  # its output is the attention's query, key and value
                yield QuantPoint(join_path(path, norm), Side.OUTPUT)
                yield QuantPoint(attention_path, Side.WEIGHT, parameter="in_proj_weight")
                yield QuantPoint(join_path(attention_path, "out_proj"), Side.WEIGHT)
            else:
                # Kinds of attention without the attribute always call the fused function.
                is_fused = bool(getattr(block.get_submodule(attention), "fused_attn", True))
                for function, call, num_operands in _FUSED_PRODUCTS if is_fused else _SEPARATE_PRODUCTS:
                    for operand in range(num_operands):
                        yield QuantPoint(attention_path, Side.INPUT, function=function, operand=operand, call=call)
            for name, _ in named_layers(block):
                if name != f"{attention}.out_proj":
                    yield QuantPoint(join_path(path, name), Side.INPUT)
                    yield QuantPoint(join_path(path, name), Side.WEIGHT)

    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        """The patch embedding's conv, then the transformer blocks."""
        for path, module in model.named_modules():
            if isinstance(module, nn.Conv2d) or _find_attention(module):
                yield path


def _find_attention(block: nn.Module) -> str:
    """The name of the attention module among a block's children; empty if there is none."""
    for name, child in block.named_children():
        has_projections = all(isinstance(getattr(child, part, None), nn.Linear) for part in ("qkv", "proj"))
        if isinstance(child, nn.MultiheadAttention) or has_projections:
            return name
    return ""


FAMILIES.register("vision transformer")(VisionTransformers())
