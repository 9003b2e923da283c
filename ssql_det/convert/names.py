"""A rename table: six templates and the ends of names say where a format keeps each tensor of a ResNet.

Names are made from places (:class:`Slot`), never taken apart: a table cannot pair two tensors wrongly, and what has
no place is left over to be reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ssql_det.convert.architecture import NORM_LEAVES, Slot


def _dotted(leaves: tuple[str, ...]) -> dict[str, str]:
    return {leaf: f".{leaf}" for leaf in leaves}


@dataclass(frozen=True)
class Names:
    """How one kind of ResNet names its parts. The defaults are torchvision's names, which are the neutral ones.

    In the templates stages count from ``first_stage``, blocks from 0, and ``convs`` spells the convs of a block.

    >>> Names()(architecture("resnet50").slots[-1])
    'layer4.2.bn3.num_batches_tracked'
    """

    stem: str = "conv1"
    stem_norm: str = "bn1"
    conv: str = "layer{stage}.{block}.conv{conv}"
    norm: str = "layer{stage}.{block}.bn{conv}"
    shortcut: str = "layer{stage}.{block}.downsample.0"
    shortcut_norm: str = "layer{stage}.{block}.downsample.1"
    first_stage: int = 1
    convs: str = "123"
    conv_leaves: Mapping[str, str] = field(default_factory=lambda: _dotted(("weight",)))
    norm_leaves: Mapping[str, str] = field(default_factory=lambda: _dotted(NORM_LEAVES))

    def __call__(self, slot: Slot) -> str | None:
        """The name of a place, or None where the format has none for it."""
        leaf = (self.norm_leaves if slot.is_norm else self.conv_leaves).get(slot.leaf)
        if leaf is None:
            return None
        if slot.stage == 0:
            return (self.stem_norm if slot.is_norm else self.stem) + leaf
        template = (
            (self.norm if slot.is_norm else self.conv)
            if slot.conv
            else (self.shortcut_norm if slot.is_norm else self.shortcut)
        )
        conv = self.convs[slot.conv - 1] if slot.conv else ""
        return template.format(stage=slot.stage - 1 + self.first_stage, block=slot.block, conv=conv) + leaf


TORCHVISION = Names()


def neutral(slot: Slot) -> str:
    """The name of a place in the neutral form.

    >>> neutral(architecture("resnet18").slots[0])
    'conv1.weight'
    """
    name = TORCHVISION(slot)
    assert name is not None, "torchvision names every place"
    return name
