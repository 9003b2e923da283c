"""``equalize=yes``: rescale the channels between layers that a ReLU joins, so that few bits serve all of them.

An activation is quantized with one scale, so channels of small values get few of its steps. Dividing channel ``j`` of
the activation ``x`` by ``s_j``, and multiplying the weights ``W2_:j`` of the next layers that read it, changes nothing
in float. With

    ``s_j = sqrt(max|x_j| / max|W2_:j|)``

the largest magnitudes of ``x_j / s_j`` and of ``W2_:j * s_j`` are equal, so that neither tensor takes all the
difficulty (Xiao et al., SmoothQuant, ICML 2023, alpha = 1/2; for the weights of both layers: Nagel et al., ICCV 2019).
The maxima are those of the calibration images; where one of them is 0, ``s_j`` is 1, and all others together have the
geometric mean 1.

The network is not changed. At a bit-width, ``x`` becomes ``Q(x / s) * s`` and ``W2`` becomes ``Q(W2 * s) / s``, where
the quantizers ``Q`` only see rescaled tensors. An integer machine multiplies the integers of both, without ``s``; it
has ``1 / s`` in the first layer's factor of each channel, before the ReLU (``relu(x / s) = relu(x) / s``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.distributed import all_reduce_tensor
from ssql_det.core.errors import UserError
from ssql_det.quant.affine import compute_dtype
from ssql_det.quant.forward import Forward, evaluating
from ssql_det.quant.hooks import Action, get_float_weight, hooking
from ssql_det.quant.joints import Joint
from ssql_det.quant.points import QuantPoint
from ssql_det.quant.points.family import LAYER_TYPES, count_output_channels
from ssql_det.quant.quantizers import TensorSpec
from ssql_det.quant.tensor_cache import TensorCache
from ssql_det.quant.tracing import trace_pass


class Equalization:
    """``factors`` of channels, by which the tensors of some points are divided before they are quantized: ``s`` for an
    activation, ``1 / s`` for a weight. Their shapes broadcast to the tensors.

    >>> from ssql_det.quant import Side
    >>> point = QuantPoint("conv1", Side.INPUT)
    >>> rounding = Equalization({point: torch.tensor([1.0, 4.0])}).rescaling(point, torch.round)
    >>> rounding(torch.tensor([5.4, 5.4]))
    tensor([5., 4.])
    """

    def __init__(self, factors: Mapping[QuantPoint, Tensor] | None = None) -> None:
        self.factors = dict(factors or {})
        self._weights: dict[QuantPoint, TensorCache[Tensor]] = defaultdict(TensorCache)

    def divide(self, point: QuantPoint, x: Tensor) -> Tensor:
        """The tensor of a point, rescaled: what its quantizer gets. That of a weight is kept until the weight changes,
        since a quantizer may search its scale, once for each tensor."""
        if point not in self.factors:
            return x
        if not point.is_weight or (torch.is_grad_enabled() and x.requires_grad):
            return x / self._get_factors(point, x)
        return self._weights[point].get(x, 0, lambda: x / self._get_factors(point, x))

    def rescaling(self, point: QuantPoint, action: Action) -> Action:
        """``action`` on the rescaled tensor, its result scaled back."""
        if point not in self.factors:
            return action
        return lambda x: (action(self.divide(point, x)) * self._get_factors(point, x)).to(x.dtype)

    def observing(self, point: QuantPoint, observe: Action) -> Action:
        """``observe`` on the rescaled tensor; the result is the tensor as it was."""

        def observe_rescaled(x: Tensor) -> Tensor:
            observe(self.divide(point, x))
            return x

        return observe_rescaled

    def _get_factors(self, point: QuantPoint, x: Tensor) -> Tensor:
        return self.factors[point].to(x.device, compute_dtype(x))

    def check(self, specs: Iterable[TensorSpec]) -> None:
        """Raise a ``ValueError`` for factors, as of a file, that do not fit these tensors."""
        shapes = {spec.point: spec.shape for spec in specs}
        for point, factors in self.factors.items():
            if not (factors > 0).all() or not factors.isfinite().all():
                raise ValueError(f"the channels of {point.key} are divided by factors that are not positive numbers")
            shape = shapes[point]
            if shape is not None and torch.broadcast_shapes(factors.shape, shape) != shape:
                raise ValueError(f"the factors at {point.key} do not fit a weight of shape {list(shape)}")


@torch.no_grad()
def compute_equalization(
    model: nn.Module, points: Sequence[QuantPoint], batches: Sequence[Any], forward: Forward
) -> Equalization:
    """Find the joints of a network, and the factors of their channels.

    With several processes, each one passes its share of the images.
    """
    channels = {joint.point: _Channels(model, joint, points) for joint in _find(model, points, batches[0], forward)}
    with ExitStack() as stack:
        for point in points:
            action = channels[point].observe if point in channels else None
            stack.enter_context(hooking(model, point, action))
        stack.enter_context(evaluating(model))
        for batch in track(batches, "equalizing"):
            forward(model, batch)
    observed = [each.maxima for each in channels.values()]
    merged = all_reduce_tensor(torch.cat(observed), "max").split([len(maxima) for maxima in observed])
    factors: dict[QuantPoint, Tensor] = {}
    for each, maxima in zip(channels.values(), merged, strict=True):
        factors |= each.compute_factors(maxima)
    return Equalization(factors)


def _find(model: nn.Module, points: Sequence[QuantPoint], batch: Any, forward: Forward) -> list[Joint]:
    """The joints of quantized layers. A point with a bit-width or a range of its own is left out."""
    layers = {point.path for point in points if point.is_weight and point.parameter == "weight"}
    layers = {path for path in layers if isinstance(model.get_submodule(path), LAYER_TYPES)}
    found = [
        joint
        for joint in trace_pass(model, points, batch, forward).joints
        if joint.point.bits is None and joint.point.fixed_range is None and layers >= {joint.layer, *joint.readers}
    ]
    if not found:
        raise UserError(f"equalize=yes: no ReLU joins two quantized layers in {type(model).__name__}; use equalize=no")
    return found


class _Channels:
    """The channels of a joint's tensor, and the weights that are multiplied with them."""

    def __init__(self, model: nn.Module, joint: Joint, points: Sequence[QuantPoint]) -> None:
        self._point = joint.point
        weights = (point for point in points if point.is_weight and point.path in joint.readers)
        self._readers = [(each, model.get_submodule(each.path), get_float_weight(model, each)) for each in weights]
        layer: Any = model.get_submodule(joint.layer)
        num_channels = count_output_channels(layer)
        self.maxima = torch.zeros(num_channels, dtype=compute_dtype(layer.weight), device=layer.weight.device)
        self._shape: tuple[int, ...] = ()  # of the tensor, without the samples

    def observe(self, x: Tensor) -> Tensor:
        """Observe the tensor: [N, C, H, W], or [N, C * H * W] after flattening."""
        self._shape = tuple(x.shape[1:])
        if x.numel():
            magnitudes = x.detach().abs().reshape(len(x), len(self.maxima), -1)
            self.maxima = torch.maximum(self.maxima, magnitudes.amax((0, 2)).to(self.maxima))
        return x

    def compute_factors(self, maxima: Tensor) -> dict[QuantPoint, Tensor]:
        """The factors of the tensor and of the weights, from the largest magnitudes of the tensor's channels."""
        weight_maxima = [
            compute_input_maxima(weight, layer).view(len(maxima), -1).amax(1).to(maxima)
            for _, layer, weight in self._readers
        ]
        scale = choose_scale(maxima, torch.stack(weight_maxima).amax(0))
        factors = {point: expand_to_weight(1 / scale, weight.shape, layer) for point, layer, weight in self._readers}
        return factors | {self._point: _repeat(scale, self._shape[0]).view(-1, *(1 for _ in self._shape[1:]))}


def choose_scale(maxima: Tensor, weight_maxima: Tensor) -> Tensor:
    """``s`` from the largest magnitude of each channel in the activation and in the weight.

    >>> choose_scale(torch.tensor([8.0, 2.0, 0.0]), torch.tensor([2.0, 8.0, 5.0]))
    tensor([2.0000, 0.5000, 1.0000])
    """
    products = maxima * weight_maxima
    is_live = (products > 0) & products.isfinite()
    logs = torch.where(is_live, maxima.double() / weight_maxima, 1).log() / 2
    logs -= torch.where(is_live, logs.sum() / is_live.sum().clamp(min=1), 0)
    return logs.exp().to(maxima.dtype)


def compute_input_maxima(weight: Tensor, layer: nn.Module) -> Tensor:
    """The largest magnitude of a layer's weights for each input channel.

    >>> layer = nn.Conv2d(8, 6, 3, groups=2)
    >>> compute_input_maxima(layer.weight, layer).shape
    torch.Size([8])
    """
    magnitudes = weight.detach().abs()
    if isinstance(layer, nn.ConvTranspose2d):
        return magnitudes.amax((1, 2, 3))
    groups = getattr(layer, "groups", 1)
    return magnitudes.reshape(groups, len(weight) // groups, weight.shape[1], -1).amax((1, 3)).flatten()


def expand_to_weight(factors: Tensor, shape: Sequence[int], layer: nn.Module) -> Tensor:
    """Factors of input channels, or of blocks of input features, in a form that broadcasts to the layer's weight.

    >>> expand_to_weight(torch.ones(8), (6, 8, 3, 3), nn.Conv2d(8, 6, 3)).shape
    torch.Size([1, 8, 1, 1])
    >>> expand_to_weight(torch.ones(8), (6, 4, 3, 3), nn.Conv2d(8, 6, 3, groups=2)).shape
    torch.Size([6, 4, 1, 1])
    """
    ones = [1 for _ in shape[2:]]
    if isinstance(layer, nn.ConvTranspose2d):
        return factors.view(-1, 1, *ones)
    groups = getattr(layer, "groups", 1)
    rows = _repeat(factors, groups * shape[1]).view(groups, shape[1])
    return (rows if groups == 1 else _repeat(rows, shape[0])).view(-1, shape[1], *ones)


def _repeat(factors: Tensor, length: int) -> Tensor:
    """Repeat each entry of the first axis so often that there are ``length``."""
    return factors.repeat_interleave(length // len(factors), 0)
