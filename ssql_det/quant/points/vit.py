"""Vision transformers (Dosovitskiy et al., ICLR 2021), timm's and torchvision's.

The patch embedding's weight at 8 bits; in each block the input and the weight of ``qkv``, of the projection behind the
attention and of both layers of the MLP. What is added up, norms and the classifier stay float. The operands of the
attention products are quantized where they are arguments of a function that the block's own attention calls (timm's);
torchvision's are inside ``nn.MultiheadAttention``, whose products, and the input of whose last projection, stay float.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ssql_det.quant.points.family import FAMILIES, STEM_BITS, Family, Range, join_path, named_layers
from ssql_det.quant.points.point import QuantPoint, Side

_PRODUCTS = {True: (("scaled_dot_product_attention", None, 3),), False: (("matmul", 0, 2), ("matmul", 1, 2))}


class VisionTransformers(Family):
    def matches(self, model: nn.Module) -> bool:
        return any(map(_attention_of, model.modules()))

    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        for path in self.find_blocks(model):
            block = model.get_submodule(path)
            attention = _attention_of(block)
            if not attention:
                yield QuantPoint(path, Side.WEIGHT, STEM_BITS)
                continue
            inside = join_path(path, attention)
            if isinstance(block.get_submodule(attention), nn.MultiheadAttention):
                names = [name for name, _ in block.named_children()]
                yield QuantPoint(
                    join_path(path, names[names.index(attention) - 1]), Side.OUTPUT
                )  # query, key and value
                yield QuantPoint(inside, Side.WEIGHT, parameter="in_proj_weight")
                yield QuantPoint(join_path(inside, "out_proj"), Side.WEIGHT)
            else:
                is_fused = bool(getattr(block.get_submodule(attention), "fused_attn", True))
                for function, call, operands in _PRODUCTS[is_fused]:
                    for operand in range(operands):
                        yield QuantPoint(inside, Side.INPUT, function=function, operand=operand, call=call)
            for name, _ in named_layers(block):
                if name != f"{attention}.out_proj":
                    yield QuantPoint(join_path(path, name), Side.INPUT)
                    yield QuantPoint(join_path(path, name), Side.WEIGHT)

    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        for path, module in model.named_modules():
            if isinstance(module, nn.Conv2d) or _attention_of(module):
                yield path


def _attention_of(block: nn.Module) -> str:
    """The child that attends, by its name."""
    for name, child in block.named_children():
        if isinstance(child, nn.MultiheadAttention) or all(
            isinstance(getattr(child, part, None), nn.Linear) for part in ("qkv", "proj")
        ):
            return name
    return ""


FAMILIES.register("vision transformer")(VisionTransformers())
