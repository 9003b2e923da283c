"""Joints: quantized tensors that one layer computes, up to norm and ReLU, and that only other layers read.

They are found while a forward pass is traced. Channels of such a tensor can be rescaled without a change of the
network's function, if the layers before and after the joint are rescaled too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ssql_det.quant.points import QuantPoint, Side

# Operations that commute with positive factors of channels, and keep the channels in place.
_KEEPING_CHANNELS = frozenset(
    (
        *("relu", "max_pool2d", "max_pool2d_with_indices", "upsample_nearest2d"),
        *("alias", "clone", "contiguous", "detach"),
    )
)
_VIEWS = frozenset(("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"))


@dataclass(frozen=True)
class Joint:
    """A tensor that ``point`` quantizes: ``layer``'s output after its norm and ReLU, which only ``readers`` read.

    ``layer`` and ``readers`` are paths of modules. If readers are linear layers after a flattened feature map, each
    channel is a block of consecutive features.
    """

    layer: str
    point: QuantPoint
    readers: tuple[str, ...]


@dataclass(frozen=True)
class _Value:
    """What a tensor holds: the output of a layer, if ``is_rectified`` after its ReLU."""

    layer: str
    is_rectified: bool = False


@dataclass(frozen=True)
class _Read:
    """A layer that reads another layer's rectified output; ``source`` is empty for any other tensor, ``reader`` for any
    other operation."""

    source: str
    reader: str
    point: QuantPoint | None = None


class JointTracker:
    """Follows the layers' outputs through one forward pass; ``find_joints`` is called at the end."""

    def __init__(self) -> None:
        self._values = WeakTensorKeyDictionary()
        self._layers: dict[str, None] = {}  # in the order in which they run
        self._reads: dict[_Read, None] = {}
        self._quantized: set[tuple[QuantPoint, str]] = set()  # points, each with the source of its tensor

    def mark_quantized(self, x: Tensor, point: QuantPoint) -> None:
        value = self._values.get(x)
        self._quantized.add((point, value.layer if value else ""))

    def mark_output(self, x: Tensor, layer: str) -> None:
        """``x`` is what a layer computed, or with ``layer`` empty another product."""
        if layer:
            self._layers[layer] = None
            self._values[x] = _Value(layer)

    def mark_read(self, x: Tensor, reader: str = "", point: QuantPoint | None = None) -> None:
        """A layer reads ``x``, which ``point`` quantizes; without ``reader`` any other operation reads it."""
        value = self._values.get(x)
        is_known = value is not None and value.is_rectified
        self._reads[_Read(value.layer if is_known else "", reader, point)] = None
        if value is not None and not is_known:
            self._reads[_Read(value.layer, "")] = None

    def mark_returned(self, tensors: Iterable[Tensor]) -> None:
        """The network returns these tensors, so others may read them."""
        for x in tensors:
            self.mark_read(x)

    def follow(self, name: str, inputs: Iterable[Tensor], results: Iterable[Tensor], *, is_norm: bool) -> None:
        """Follow an operation that is no layer's product: its results hold what the first input held, or it reads its
        inputs."""
        results = tuple(results)
        for index, x in enumerate(inputs):
            value = self._values.get(x)
            if value is None:
                continue
            keeps = all(_keeps_channels(name, x, result) for result in results) or (is_norm and not value.is_rectified)
            if index or not keeps:
                self.mark_read(x)
                value = None
            for result in results:
                if value is not None:
                    self._values[result] = replace(value, is_rectified=value.is_rectified or name == "relu")
                elif result in self._values:  # changed in place
                    del self._values[result]

    def find_joints(self) -> tuple[Joint, ...]:
        joints = []
        for layer in self._layers:
            reads = [read for read in self._reads if read.source == layer]
            readers, points = dict.fromkeys(read.reader for read in reads), {read.point for read in reads}
            if len(points) != 1 or "" in readers:
                continue
            (point,) = points
            if point is None or not all(_is_quantized_for(point, reader) for reader in readers):
                continue
            sources = {read.source for read in self._reads if read.reader in readers}
            sources |= {source for other_point, source in self._quantized if other_point == point}
            if sources == {layer}:
                joints.append(Joint(layer, point, tuple(readers)))
        return tuple(joints)


def _keeps_channels(name: str, x: Tensor, result: Tensor) -> bool:
    """Whether the result's axis 1 has the channels of ``x``, each as a block of consecutive features."""
    if name in _KEEPING_CHANNELS:
        return True
    is_flattened = result.ndim == 2 and len(result) == len(x) and result.shape[1] == math.prod(x.shape[1:])
    return name in _VIEWS and (x.shape == result.shape or is_flattened)


def _is_quantized_for(point: QuantPoint, reader: str) -> bool:
    """Whether a layer that reads the tensor after ``point`` does so quantized: others read a module's float input."""
    return point.side is not Side.INPUT or not point.path or f"{reader}.".startswith(f"{point.path}.")
