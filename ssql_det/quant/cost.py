"""What a network costs at given bits: size, multiply-adds, bit-operations, from the same quantization points.

A multiply-add of a ``b_w``-bit weight with a ``b_a``-bit activation counts ``b_w * b_a`` bit-operations, with
32 for float. Which point an activation comes from is followed through the forward pass: max-pooling, ReLU,
nearest upsampling and changes of shape keep a tensor on its grid; everything else leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ssql_det.quant.bits import Bits
from ssql_det.quant.hooks import hooked
from ssql_det.quant.points import QuantPoint, assign_bits

FLOAT_BITS = 32
IMAGE_BITS = 8  # what the first layer reads

_STAY_ON_GRID = frozenset(
    [
        *("max_pool2d", "max_pool2d_with_indices", "relu", "relu_", "upsample_nearest2d"),
        *("alias", "clone", "contiguous", "detach", "expand", "permute", "reshape", "select", "slice"),
        *("squeeze", "t", "transpose", "unsqueeze", "view", "_unsafe_view"),
    ]
)


@dataclass(frozen=True)
class Cost:
    """Bytes of the parameters, and multiply-adds and bit-operations of the convs and linears of one pass."""

    bytes: int
    macs: int
    bit_ops: int


@dataclass(frozen=True)
class LayerCall:
    """One call of a conv or linear layer, and where its input was last quantized (``None``: it is float)."""

    path: str
    macs: int
    source: QuantPoint | None
    reads_image: bool


@dataclass(frozen=True)
class ParameterSize:
    """How many elements a parameter has, and the bytes of one in float."""

    elements: int
    element_bytes: int


@dataclass(frozen=True)
class CostProfile:
    """One traced pass, priced at any bits.

    >>> profile = profile_cost(model, points, torch.zeros(1, 3, 224, 224))
    >>> profile.at(Bits(4, 4)).bytes / profile.at(Bits.FP).bytes  # of a ResNet-18, its classifier in float
    0.165
    """

    points: tuple[QuantPoint, ...]
    calls: tuple[LayerCall, ...]
    parameters: Mapping[str, ParameterSize]
    channels: Mapping[str, int]

    def at(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> Cost:
        """The cost at these bits, with the same overrides as ``Quantization.at`` takes."""
        widths = assign_bits(self.points, bits, overrides)
        weights = {point.path: width for point, width in widths.items() if point.is_weight}
        return Cost(
            bytes=sum(self._bytes(name, size, weights) for name, size in self.parameters.items()),
            macs=sum(call.macs for call in self.calls),
            bit_ops=sum(call.macs * _product(call, weights, widths) for call in self.calls),
        )

    def _bytes(self, name: str, size: ParameterSize, weights: Mapping[str, int | None]) -> int:
        path, _, leaf = name.rpartition(".")
        width = weights.get(path) if leaf == "weight" else None
        if width is None:
            return size.elements * size.element_bytes
        return -(-size.elements * width // 8) + self.channels[path] * FLOAT_BITS // 8  # and a scale a channel


def profile_cost(
    model: nn.Module,
    points: Iterable[QuantPoint],
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> CostProfile:
    """Trace one float pass of ``model(inputs)``, or ``forward(model, inputs)``."""
    points = tuple(points)
    layers: dict[nn.Module, str] = {
        module: path for path, module in model.named_modules() if isinstance(module, _COUNTED)
    }
    grid = _Grid()
    calls: list[LayerCall] = []

    def count(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls.append(LayerCall(layers[module], _macs(module, args[0], output), grid.origin(args[0]), not calls))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for point in points:
            if not point.is_weight:
                stack.enter_context(hooked(model, point, grid.marker(point)))
        for module in layers:
            stack.callback(module.register_forward_hook(count).remove)
        stack.enter_context(grid)
        (forward or (lambda network, batch: network(batch)))(model, inputs)
    channels = {path: _channels(module) for module, path in layers.items()}
    sizes = {name: ParameterSize(tensor.numel(), tensor.element_size()) for name, tensor in model.named_parameters()}
    return CostProfile(points, tuple(calls), sizes, channels)


_COUNTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _macs(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """Every output element of a conv or linear is one weight slice's worth; every input element, if transposed."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    per_element = weight[0].numel()
    return (x if isinstance(layer, nn.ConvTranspose2d) else output).numel() * per_element


def _channels(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _product(call: LayerCall, weights: Mapping[str, int | None], widths: Mapping[QuantPoint, int | None]) -> int:
    weight = weights.get(call.path)
    act = widths[call.source] if call.source else None
    if act is None and call.reads_image and weight is not None:
        act = IMAGE_BITS
    return (weight or FLOAT_BITS) * (act or FLOAT_BITS)


class _Grid(TorchDispatchMode):
    """Remembers, for each tensor, the point whose grid it lies on."""

    def __init__(self) -> None:
        super().__init__()
        self._origins = WeakTensorKeyDictionary()

    def origin(self, x: Tensor) -> QuantPoint | None:
        return self._origins.get(x)

    def marker(self, point: QuantPoint) -> Callable[[Tensor], Tensor]:
        def mark(x: Tensor) -> Tensor:
            self._origins[x] = point
            return x

        return mark

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        origin = self._origins.get(args[0]) if args and isinstance(args[0], Tensor) else None
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if isinstance(first, Tensor):
            if origin is not None and func.overloadpacket.__name__ in _STAY_ON_GRID:
                self._origins[first] = origin
            elif first in self._origins:  # changed in place, off its grid
                del self._origins[first]
        return result
