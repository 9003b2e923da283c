"""Trace one float forward pass of a network: which tensors are multiplied, which points quantize them, which modules
follow each layer, and which tensors only layers read.

Max-pooling, ReLU, nearest upsampling, multiplication by a number and changes of shape keep the values of a quantized
tensor quantized; after any other operation they are float again.
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
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from ssql_det.core.errors import UserError
from ssql_det.quant.forward import evaluating
from ssql_det.quant.hooks import hooking
from ssql_det.quant.joints import Joint, JointTracker
from ssql_det.quant.points import QuantPoint

_RESHAPES = frozenset(
    [
        *("alias", "clone", "contiguous", "detach", "expand", "permute", "reshape", "select", "slice", "split"),
        *("squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
    ]
)
# Results of these operations are values of the input, so they stay quantized.
_VALUE_SELECTIONS = frozenset(("max_pool2d", "max_pool2d_with_indices", "upsample_nearest2d"))
_NORMS = frozenset(
    ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training")
)
_ACTIVATIONS = frozenset(("relu", "hardtanh", "silu", "gelu", "hardswish", "sigmoid", "elu", "leaky_relu"))

_MAX_LOGGED = 3  # float operations that a log line names
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """A convolution or matrix product, called in the forward of the module at ``path``.

    ``parameter`` is the full name of the weight; empty if both factors are activations. ``input_points`` are the points
    that quantize the activations, ``None`` for a float one. ``reads_image`` is true for the first operation of the
    pass. ``float_reason`` says why the operation stays float; empty for a quantized operation.
    """

    path: str
    macs: int
    parameter: str
    input_points: tuple[QuantPoint | None, ...]
    reads_image: bool = False
    float_reason: str = ""


@dataclass(frozen=True)
class Chain:
    """A layer and what directly follows it: its norm, its activation and the point that quantizes the result.

    All but the layer may be missing (empty or ``None``). ``layer`` and ``norm`` are paths of modules, ``activation`` is
    the name of an operation (``relu``). ``input_point`` is the point that quantizes the layer's input.
    """

    layer: str
    input_point: QuantPoint | None = None
    norm: str = ""
    activation: str = ""
    output_point: QuantPoint | None = None


@dataclass(frozen=True)
class Trace:
    """The operations, the chains and the joints of one forward pass.

    >>> from ssql_det.quant import quant_points
    >>> trace = trace_pass(model, quant_points(model), images)
    >>> trace.coverage, trace.float_operations
    (1.0, ())
    >>> trace.chains[0].layer, trace.chains[0].norm, trace.chains[0].activation, trace.chains[0].output_point.key
    ('conv1', 'bn1', 'relu', 'act1:output')
    """

    operations: tuple[Operation, ...]
    chains: tuple[Chain, ...]
    joints: tuple[Joint, ...]

    @property
    def float_operations(self) -> tuple[Operation, ...]:
        return tuple(each for each in self.operations if each.float_reason)

    @property
    def macs(self) -> int:
        return sum(operation.macs for operation in self.operations)

    @property
    def coverage(self) -> float:
        """The share of multiply-adds whose weight has a point, or whose two activations are quantized."""
        return 1 - sum(each.macs for each in self.float_operations) / max(self.macs, 1)


def trace_pass(
    model: nn.Module,
    points: Iterable[QuantPoint],
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Trace:
    """Trace one float forward pass of ``model(inputs)``, or of ``forward(model, inputs)``, in evaluation mode.

    Raises an error if the pass does not reach a point.
    """
    points = tuple(points)
    tracer = _Tracer(model)
    reached: set[QuantPoint] = set()

    def mark_at(point: QuantPoint) -> Callable[[Tensor], Tensor]:
        def mark(x: Tensor) -> Tensor:
            reached.add(point)
            tracer.mark_quantized(x, point)
            return x

        return mark

    with ExitStack() as stack:
        for context in (torch.no_grad(), evaluating(model), _unfused_attention(), tracer.tracking_modules()):
            stack.enter_context(context)
        for point in (each for each in points if not each.is_weight):
            stack.enter_context(hooking(model, point, mark_at(point)))
        stack.enter_context(tracer)
        (forward or (lambda network, batch: network(batch)))(model, inputs)
    _check_all_reached(model, points, reached, {operation.parameter for operation in tracer.operations})
    quantized_weights = {point.parameter_name for point in points if point.is_weight}
    operations = (replace(each, float_reason=_explain_float(each, quantized_weights)) for each in tracer.operations)
    trace = Trace(tuple(operations), tuple(tracer.get_chains()), tracer.joints.find_joints())
    reasons = list(dict.fromkeys(f"{each.path}: {each.float_reason}" for each in trace.float_operations))
    logged = "; ".join(reasons[:_MAX_LOGGED]) + ("; ..." if len(reasons) > _MAX_LOGGED else "")
    _logger.info("%.2f %% of the multiply-adds are quantized; float: %s", 100 * trace.coverage, logged or "none")
    return trace


def _check_all_reached(
    model: nn.Module, points: Iterable[QuantPoint], reached: Collection[QuantPoint], parameters: Collection[str]
) -> None:
    missed = [
        point.key
        for point in points
        if (point.parameter_name not in parameters if point.is_weight else point not in reached)
    ]
    if missed:
        raise UserError(
            f"a forward pass of {type(model).__name__} never reaches {missed[0]} ({len(missed)} such point(s)); remove "
            "the unused modules, or leave out their points"
        )


def _explain_float(operation: Operation, quantized_weights: Collection[str]) -> str:
    """Why an operation stays float; empty if it is quantized."""
    if operation.parameter:
        return "" if operation.parameter in quantized_weights else f"{operation.parameter} has no point"
    return "a product of activations, one of which is not quantized" if None in operation.input_points else ""


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Run attention as separate matrix products: a fused kernel is one operation, which cannot be counted."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: a point that quantizes it, a parameter, or the layer that computed it."""

    point: QuantPoint | None = None
    parameter: str = ""
    layer: str = ""
    is_layer_output: bool = False  # the layer's output itself, before norm and activation


_UNKNOWN = _Origin()


class _Tracer(TorchDispatchMode):
    """Keeps the origin of each tensor, and collects operations and chains."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._origins = WeakTensorKeyDictionary()
        for name, parameter in model.named_parameters():
            self._origins[parameter] = _Origin(parameter=name)
        self._paths: list[str] = [""]  # of the modules whose forward is running
        self._read_outputs = WeakTensorKeyDictionary()  # layer outputs that were read
        self._layers_read_twice: set[str] = set()  # no norm can be folded into these layers
        self.operations: list[Operation] = []
        self._chains: dict[str, Chain] = {}
        self.joints = JointTracker()

    @contextmanager
    def tracking_modules(self) -> Iterator[None]:
        """Keep track of the module whose forward is running."""
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                enter, leave = (
                    (lambda *_, path=path: self._paths.append(path)),
                    (lambda *args: self._leave_module(args[-1])),
                )
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def _leave_module(self, output: Any) -> None:
        if not self._paths.pop():
            self.joints.mark_returned(_list_tensors(output))

    def mark_quantized(self, x: Tensor, point: QuantPoint) -> None:
        self.joints.mark_quantized(x, point)
        layer = self._get_origin(x).layer
        if layer and self._chains[layer].output_point is None:
            self._chains[layer] = replace(self._chains[layer], output_point=point)
        self._origins[x] = _Origin(point=point)

    def get_chains(self) -> Iterator[Chain]:
        for layer, chain in self._chains.items():
            yield Chain(layer, chain.input_point) if layer in self._layers_read_twice else chain

    def _get_origin(self, x: Any) -> _Origin:
        origin: _Origin = self._origins.get(x, _UNKNOWN) if isinstance(x, Tensor) else _UNKNOWN
        return origin

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        input_origin = self._get_origin(args[0] if args else None)
        for arg in args:
            if (origin := self._get_origin(arg)).is_layer_output:
                if arg in self._read_outputs:
                    self._layers_read_twice.add(origin.layer)
                self._read_outputs[arg] = True
        result = func(*args, **(kwargs or {}))
        name, inputs = func.overloadpacket.__name__, _list_tensors((args, kwargs))
        if func.overloadpacket in flop_registry:
            result_origin = self._add_operation(func, name, args, kwargs or {}, result)
            for each, origin in ((each, self._get_origin(each)) for each in inputs):
                if not origin.parameter:
                    self.joints.mark_read(each, result_origin.layer, origin.point)
            self.joints.mark_output(result, result_origin.layer)
        else:
            result_origin = self._propagate_origin(name.rstrip("_"), args, input_origin)
            self.joints.follow(name.rstrip("_"), inputs, _list_tensors(result), is_norm=name in _NORMS)
        for each in _list_tensors(result):
            if result_origin is not _UNKNOWN or each in self._origins:  # the latter: changed in place
                self._origins[each] = result_origin
        return result

    def _add_operation(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> _Origin:
        """Add a convolution or matrix product; if its weight belongs to the running module, it begins a chain."""
        factors = args[1:3] if name in ("addmm", "baddbmm") else args[:2]  # args[0] is the addend
        origins = [self._get_origin(each) for each in factors]
        parameter = next((each.parameter for each in origins if each.parameter), "")
        input_points = tuple(each.point for each in origins if not each.parameter)
        # The registry counts a multiply-add as two operations.
        macs = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result) // 2
        path = self._paths[-1]
        # (None,): a product of two parameters counts as having one float input.
        self.operations.append(
            Operation(path, macs, parameter, input_points or (None,), reads_image=not self.operations)
        )
        layer = parameter.rpartition(".")[0]
        if not parameter or layer != path:
            return _UNKNOWN
        self._chains.setdefault(layer, Chain(layer, input_points[0] if input_points else None))
        return _Origin(layer=layer, is_layer_output=True)

    def _propagate_origin(self, name: str, args: Any, origin: _Origin) -> _Origin:
        """The origin of the result of any other operation; norms and activations extend the layer's chain."""
        if name in _RESHAPES:
            return origin
        chain = self._chains.get(origin.layer)
        if chain is not None and name in _NORMS and not (chain.norm or chain.activation):
            self._chains[chain.layer] = replace(chain, norm=self._paths[-1])
            return _Origin(layer=origin.layer)
        if chain is not None and name in _ACTIVATIONS:
            self._chains[chain.layer] = replace(chain, activation=chain.activation or name)
            return _Origin(layer=origin.layer)
        stays_quantized = (
            name in _VALUE_SELECTIONS or name == "relu" or (name == "mul" and not isinstance(args[1], Tensor))
        )
        return _Origin(point=origin.point) if stays_quantized else _UNKNOWN


def _list_tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]
