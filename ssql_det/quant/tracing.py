"""One float pass of a network, followed operation by operation: what multiplies what, and what follows each layer.

Max-pooling, ReLU, nearest upsampling and changes of shape keep a tensor on its grid; everything else leaves it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from ssql_det.core.errors import UserError
from ssql_det.quant.forward import evaluating
from ssql_det.quant.hooks import hooking
from ssql_det.quant.points import QuantPoint

_RESHAPES = frozenset(
    [
        *("alias", "clone", "contiguous", "detach", "expand", "permute", "reshape", "select", "slice", "split"),
        *("squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
    ]
)
_POOLS = frozenset(("max_pool2d", "max_pool2d_with_indices", "upsample_nearest2d"))
_NORMS = frozenset(
    ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training")
)
_ACTIVATIONS = frozenset(("relu", "hardtanh", "silu", "gelu", "hardswish", "sigmoid", "elu", "leaky_relu"))

_NAMED = 3  # operations, in a log line
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """A convolution or a matrix product, in the forward of the module at ``path``.

    ``parameter`` is the weight that takes part, under its full name; without one it is a product of two activations.
    ``sources`` are the points on whose grids its activations lie; ``None`` lies on none. ``reason`` says why no points
    serve it, where none do.
    """

    path: str
    macs: int
    parameter: str
    sources: tuple[QuantPoint | None, ...]
    reads_image: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Chain:
    """A layer, and what follows it directly: ``layer -> norm -> activation -> point``, as far as they are there.

    ``source`` is the point on whose grid the layer's input lies.
    """

    layer: str
    source: QuantPoint | None = None
    norm: str = ""
    activation: str = ""
    point: QuantPoint | None = None


@dataclass(frozen=True)
class Trace:
    """What was seen of one pass.

    >>> trace = trace_pass(model, quant_points(model), torch.zeros(1, 3, 224, 224))
    >>> trace.coverage, [each.path for each in trace.float_operations]
    (0.9997, ['fc'])
    >>> trace.chains[0]
    Chain(layer='conv1', source=None, norm='bn1', activation='relu', point=QuantPoint('relu', Side.OUTPUT, 8))
    """

    operations: tuple[Operation, ...]
    chains: tuple[Chain, ...]

    @property
    def float_operations(self) -> tuple[Operation, ...]:
        return tuple(each for each in self.operations if each.reason)

    @property
    def macs(self) -> int:
        return sum(operation.macs for operation in self.operations)

    @property
    def coverage(self) -> float:
        """The share of multiply-adds that points serve: whose weight has one, or both of whose activations do."""
        return 1 - sum(each.macs for each in self.float_operations) / max(self.macs, 1)


def trace_pass(
    model: nn.Module,
    points: Iterable[QuantPoint],
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Trace:
    """Follow one float pass of ``model(inputs)``, or ``forward(model, inputs)``, in evaluation mode.

    A point that the pass does not reach is an error: nothing would ever be quantized there.
    """
    points = tuple(points)
    follower = _Follower(model)
    reached: set[QuantPoint] = set()

    def mark(point: QuantPoint) -> Callable[[Tensor], Tensor]:
        def marked(x: Tensor) -> Tensor:
            reached.add(point)
            follower.mark(x, point)
            return x

        return marked

    with ExitStack() as stack:
        for context in (torch.no_grad(), evaluating(model), _attention_in_parts(), follower.watching_modules()):
            stack.enter_context(context)
        for point in points:
            if not point.is_weight:
                stack.enter_context(hooking(model, point, mark(point)))
        stack.enter_context(follower)
        (forward or (lambda network, batch: network(batch)))(model, inputs)
    used = {operation.parameter for operation in follower.operations}
    missed = [
        point.key for point in points if (point.parameter_name not in used if point.is_weight else point not in reached)
    ]
    if missed:
        raise UserError(
            f"{type(model).__name__} never reaches {missed[0]} ({len(missed)} such point(s)): leave what is not used "
            "out of the network, or its points out"
        )
    weights = {point.parameter_name for point in points if point.is_weight}
    operations = (replace(each, reason=_why_float(each, weights)) for each in follower.operations)
    trace = Trace(tuple(operations), tuple(follower.clean_chains()))
    reasons = list(dict.fromkeys(f"{each.path}: {each.reason}" for each in trace.float_operations))
    named = "; ".join(reasons[:_NAMED]) + ("; ..." if len(reasons) > _NAMED else "")
    _logger.info("points serve %.2f %% of the multiply-adds; float: %s", 100 * trace.coverage, named or "nothing")
    return trace


def _why_float(operation: Operation, weights: Collection[str]) -> str:
    if operation.parameter:
        return "" if operation.parameter in weights else f"{operation.parameter} has no point"
    return "a product of activations, of which one lies on no grid" if None in operation.sources else ""


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Attention as the products that it is made of: fused kernels are one operation, without a count."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: the point whose grid it lies on, a parameter, or a layer that it is the result of."""

    point: QuantPoint | None = None
    parameter: str = ""
    layer: str = ""
    is_plain: bool = False  # the layer's very result, before norm and activation


_NOWHERE = _Origin()


class _Follower(TorchDispatchMode):
    """Remembers the origin of each tensor, and takes down operations and chains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._origins = WeakTensorKeyDictionary()
        for name, parameter in model.named_parameters():
            self._origins[parameter] = _Origin(parameter=name)
        self._paths: list[str] = [""]
        self._read = WeakTensorKeyDictionary()  # plain results that were read
        self._shared: set[str] = set()  # layers whose plain result is read twice: nothing can be folded into them
        self.operations: list[Operation] = []
        self.chains: dict[str, Chain] = {}

    @contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Inside, it is known in which module's forward an operation is."""
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                enter, leave = (lambda *_, path=path: self._paths.append(path)), (lambda *_: self._leave())
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def _leave(self) -> None:
        self._paths.pop()

    def mark(self, x: Tensor, point: QuantPoint) -> None:
        layer = self._origin(x).layer
        if layer and self.chains[layer].point is None:
            self.chains[layer] = replace(self.chains[layer], point=point)
        self._origins[x] = _Origin(point=point)

    def clean_chains(self) -> Iterator[Chain]:
        for layer, chain in self.chains.items():
            yield Chain(layer, chain.source) if layer in self._shared else chain

    def _origin(self, x: Any) -> _Origin:
        found: _Origin = self._origins.get(x, _NOWHERE) if isinstance(x, Tensor) else _NOWHERE
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        origin = self._origin(args[0] if args else None)
        for each in args:
            if (found := self._origin(each)).is_plain:
                if each in self._read:
                    self._shared.add(found.layer)
                self._read[each] = True
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.overloadpacket in flop_registry:
            after = self._multiplied(func, name, args, kwargs or {}, result)
        else:
            after = self._followed(name.rstrip("_"), args, origin)
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor) and (after is not _NOWHERE or each in self._origins):  # changed in place
                self._origins[each] = after
        return result

    def _multiplied(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> _Origin:
        """An operation that is counted; its result begins a chain where a layer's weight takes part."""
        factors = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
        origins = [self._origin(each) for each in factors]
        parameter = next((each.parameter for each in origins if each.parameter), "")
        sources = tuple(each.point for each in origins if not each.parameter)
        macs = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result) // 2
        path = self._paths[-1]
        self.operations.append(Operation(path, macs, parameter, sources or (None,), not self.operations))
        layer = parameter.rpartition(".")[0]
        if not parameter or layer != path:
            return _NOWHERE
        self.chains.setdefault(layer, Chain(layer, sources[0] if sources else None))
        return _Origin(layer=layer, is_plain=True)

    def _followed(self, name: str, args: Any, origin: _Origin) -> _Origin:
        if name in _RESHAPES:
            return origin
        chain = self.chains.get(origin.layer)
        if chain is not None and name in _NORMS and not (chain.norm or chain.activation):
            self.chains[chain.layer] = replace(chain, norm=self._paths[-1])
            return _Origin(layer=origin.layer)
        if chain is not None and name in _ACTIVATIONS:
            self.chains[chain.layer] = replace(chain, activation=chain.activation or name)
            return _Origin(layer=origin.layer)
        keeps_grid = name in _POOLS or name == "relu" or (name == "mul" and not isinstance(args[1], Tensor))
        return _Origin(point=origin.point) if keeps_grid else _NOWHERE
