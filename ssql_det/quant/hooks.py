"""Contexts that change a network while they are active: hooks at quantization points, overridden attributes, recording.

Contexts nest: at each point the innermost one is active, and leaving it restores the one outside, also after an error.
No module is replaced and no parameter is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.quant.affine import tensor_version
from ssql_det.quant.points import QuantPoint, Side
from ssql_det.quant.quantizers.quantizer import TensorSpec

Action = Callable[[Tensor], Tensor]
"""Returns the tensor to use in place of the hooked one."""

# Identifies the tensor of a point within its module.
_get_tensor_key = attrgetter("side", "parameter", "function", "operand", "call")


@contextmanager
def hooking(model: nn.Module, point: QuantPoint, action: Action | None) -> Iterator[None]:
    """Replace the tensor at a point by ``action(tensor)``; ``None`` leaves the tensor as it is.

    Outer contexts at the same point are suspended. At a weight, the action gets the parameter, and the module uses the
    returned tensor as its weight.

    >>> point = QuantPoint("act1", Side.OUTPUT)
    >>> with hooking(model, point, lambda x: x.clamp(max=6)), recording_outputs(model, ["act1"]) as outputs:
    ...     features = model(images)
    >>> outputs[0].max() <= 6
    tensor(True)
    """
    module = get_module(model, point)
    hook = next((hook for hook in _get_hooks(module) if _get_tensor_key(hook.point) == _get_tensor_key(point)), None)
    if hook is not None:
        outer_action, hook.action = hook.action, action
        try:
            hook.on_action_changed()
            yield
        finally:
            hook.action = outer_action
            hook.on_action_changed()
        return
    if point.call is not None and not point.function:
        hook = _CallHook(module, point, action, model.get_submodule(point.path.rpartition(".")[0]))
    else:
        hook_class = _WeightHook if point.is_weight else _FunctionHook if point.function else _Hook
        hook = hook_class(module, point, action)
    with ExitStack() as stack:
        stack.callback(hook.on_removed)
        for handle in hook.register():
            stack.callback(handle.remove)
        hook.on_action_changed()
        yield


def _get_hooks(module: nn.Module) -> Iterator[_Hook]:
    for method in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        hook = getattr(method, "__self__", None)
        if isinstance(hook, _Hook):
            yield hook


@contextmanager
def recording_outputs(model: nn.Module, paths: Iterable[str]) -> Iterator[list[Tensor]]:
    """Record copies of the outputs of modules, in the order in which they run; of a dict, the values.

    >>> with recording_outputs(model, ["layer3", "layer4"]) as outputs:
    ...     features = model(images)
    >>> [output.shape[1] for output in outputs]
    [96, 192]
    """
    outputs: list[Tensor] = []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        outputs.extend(tensor.clone() for tensor in (output.values() if isinstance(output, Mapping) else [output]))

    handles = [model.get_submodule(path).register_forward_hook(record) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def overriding_attributes(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Override attributes of a module inside the context, also parameters, buffers and children.

    Python looks into the instance dictionary before it calls ``nn.Module.__getattr__``.

    >>> with overriding_attributes(model.bn1, eps=0.0, running_mean=torch.zeros(24)):
    ...     features = model(images)
    >>> model.bn1.eps
    1e-05
    """
    original = {name: module.__dict__[name] for name in attributes if name in module.__dict__}
    # Where a norm's forward assigns its statistics, as ``self.running_mean += ...``, they become the module's buffer.
    buffers = {name: module._buffers[name] for name in attributes if name in module._buffers}
    module.__dict__.update(attributes)
    try:
        yield
    finally:
        module._buffers.update(buffers)
        for name in attributes:
            module.__dict__.pop(name, None)
        module.__dict__.update(original)


def get_float_weight(model: nn.Module, point: QuantPoint) -> nn.Parameter:
    """The parameter of a weight point, also inside contexts that override it."""
    return _get_parameter(get_module(model, point), point)


def get_tensor_spec(model: nn.Module, point: QuantPoint) -> TensorSpec:
    """Describe the tensor at a point, for the quantizer that is built for it."""
    module = get_module(model, point)
    if not point.is_weight:
        return TensorSpec(point)
    shape = tuple(get_float_weight(model, point).shape)
    return TensorSpec(point, shape, axis=1 if isinstance(module, nn.ConvTranspose2d) else 0)


def get_module(model: nn.Module, point: QuantPoint) -> nn.Module:
    """Return the module of a point; raise an error if the model has no module at the point's path."""
    try:
        return model.get_submodule(point.path)
    except AttributeError:
        hint = did_you_mean(point.path, [name for name, _ in model.named_modules()])
        name = type(model).__name__
        raise UserError(f"{name} has no module {point.path}: the points are of another model{hint}") from None


def _get_parameter(module: nn.Module, point: QuantPoint) -> nn.Parameter:
    weight = module._parameters.get(point.parameter)
    if weight is None:
        name = point.parameter
        raise UserError(f"{point.path}.{name} is not a parameter; remove the parametrization that computes it")
    return weight


class _Hook:
    """A hook at the input or the output of a module. Nested contexts replace the action and restore it."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None) -> None:
        self.module, self.point, self.action = module, point, action

    def register(self) -> Iterator[RemovableHandle]:
        if self.point.side is Side.OUTPUT:
            yield self.module.register_forward_hook(self.on_output)
        else:
            yield self.module.register_forward_pre_hook(self.on_input)

    def on_action_changed(self) -> None:
        """Called when a context at this point is entered or left."""

    def on_removed(self) -> None:
        """Called when the outermost context is left."""

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.action is None:
            return None
        if not args:
            raise UserError(f"{self.point.path} must be called with its input as first positional argument")
        return (self.apply(self.check_tensor(args[0])), *args[1:])

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        return None if self.action is None else self.apply(self.check_tensor(output))

    def apply(self, x: Tensor) -> Tensor:
        """Run the action without hooks of functions: functions that the action calls are not part of the forward."""
        assert self.action is not None
        with torch._C.DisableTorchFunction():
            return self.action(x)

    def check_tensor(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            type_name = type(value).__name__
            raise UserError(
                f"the {self.point.side.value} of {self.point.path} is a {type_name}; a point needs one tensor"
            )
        return value


class _CallHook(_Hook):
    """A hook at one of several calls of a module in the forward of its parent."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None, parent: nn.Module) -> None:
        super().__init__(module, point, action)
        self.parent = parent
        self.calls = 0  # of the module so far in this forward of the parent

    def register(self) -> Iterator[RemovableHandle]:
        yield self.parent.register_forward_pre_hook(self._start)
        yield from super().register()

    def _start(self, *_: Any) -> None:
        self.calls = 0

    def _is_at_point(self) -> bool:
        self.calls += 1
        return self.calls - 1 == self.point.call

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return super().on_input(module, args) if self._is_at_point() else None

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        return super().on_output(module, args, output) if self._is_at_point() else None


class _FunctionHook(_Hook):
    """A hook at a function that the module's own forward calls; calls in the forward of children are ignored."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None) -> None:
        super().__init__(module, point, action)
        self.calls = 0  # of the function so far in this forward pass
        self.depth = 0  # number of children whose forward is running

    def register(self) -> Iterator[RemovableHandle]:
        yield self.module.register_forward_pre_hook(self.on_input)
        yield self.module.register_forward_hook(self.on_output, always_call=True)
        for child in _get_callable_children(self.module):
            yield child.register_forward_pre_hook(partial(self._change_depth, 1))
            yield child.register_forward_hook(partial(self._change_depth, -1), always_call=True)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.calls = self.depth = 0
        _FunctionMode(self).__enter__()

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        torch.overrides._pop_mode()

    def _change_depth(self, change: int, *_: Any) -> None:
        self.depth += change

    def call_function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function, with the action at its input or output if the point is at this call."""
        point = self.point
        if self.action is None or self.depth or getattr(function, "__name__", "").strip("_") != point.function:
            return function(*args, **kwargs)
        self.calls += 1
        if point.call is not None and point.call != self.calls - 1:
            return function(*args, **kwargs)
        if point.side is Side.OUTPUT:
            return self.apply(self.check_tensor(function(*args, **kwargs)))
        if point.operand >= len(args):
            raise UserError(
                f"{point.path} must call {point.function} with positional arguments, which {point.key} needs"
            )
        changed = self.apply(self.check_tensor(args[point.operand]))
        return function(*args[: point.operand], changed, *args[point.operand + 1 :], **kwargs)


class _FunctionMode(TorchFunctionMode):
    """Passes every call of a torch function to a hook."""

    def __init__(self, hook: _FunctionHook) -> None:
        super().__init__()
        self._hook = hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._hook.call_function(func, args, kwargs or {})


def _get_callable_children(module: nn.Module) -> Iterator[nn.Module]:
    """The children whose forward can be called; a ``ModuleList`` has no forward, so its children are returned."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _get_callable_children(child)
        else:
            yield child


class _WeightHook(_Hook):
    """Computes a weight once for all passes, and again after its parameter changed or its graph was freed."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None) -> None:
        super().__init__(module, point, action)
        self._parameter = _get_parameter(module, point)
        self._name = point.parameter
        # What an outer context put in place of the parameter; empty if nothing.
        self._original = {name: value for name, value in module.__dict__.items() if name == self._name}
        self._weight: Tensor | None = None

    def on_action_changed(self) -> None:
        self._weight = None
        if self.action is None:
            self.module.__dict__.pop(self._name, None)
        else:
            self._compute_weight()

    def on_removed(self) -> None:
        self._weight = None  # its gradient hook refers back to this object
        self.module.__dict__.pop(self._name, None)
        self.module.__dict__.update(self._original)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.action is not None and self._is_outdated():
            self._compute_weight()

    def _compute_weight(self) -> None:
        self._version = tensor_version(self._parameter)
        self._has_graph, self._is_graph_freed = torch.is_grad_enabled(), False
        self._weight = self.apply(self._parameter)
        if self._weight.requires_grad and self._weight is not self._parameter:
            self._weight.register_hook(self._on_backward)
        self.module.__dict__[self._name] = self._weight

    def _is_outdated(self) -> bool:
        if self._weight is None or tensor_version(self._parameter) != self._version:
            return True
        return torch.is_grad_enabled() and (self._is_graph_freed or not self._has_graph)

    def _on_backward(self, grad: Tensor) -> None:
        self._is_graph_freed = True
