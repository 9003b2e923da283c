"""How a mode takes hold of a network and lets go again: exchangeable hooks, and weights that shadow parameters.

The innermost context decides what happens at its points; leaving it, by whatever way, brings back what was there
before. No module is swapped and no parameter touched.
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

Action = Callable[[Tensor], Tensor]
_PLACE = attrgetter("side", "parameter", "function", "operand", "call")  # of a point in its module, at any bits


@contextmanager
def hooking(model: nn.Module, point: QuantPoint, action: Action | None) -> Iterator[None]:
    """Let ``action`` happen at a point, in place of what an outer context does there; ``None``: nothing.

    At a weight it makes, from the parameter, the weight that the module has inside.
    """
    module = get_module(model, point)
    outer = next((hook for hook in _hooks_of(module) if _PLACE(hook.point) == _PLACE(point)), None)
    if outer is not None:
        before, outer.action = outer.action, action
        try:
            outer.changed()
            yield
        finally:
            outer.action = before
            outer.changed()
        return
    kind = _WeightHook if point.is_weight else _FunctionHook if point.function else _Hook
    hook = kind(module, point, action)
    with ExitStack() as stack:
        stack.callback(hook.removed)
        for handle in hook.registered():
            stack.callback(handle.remove)
        hook.changed()
        yield


def _hooks_of(module: nn.Module) -> Iterator[_Hook]:
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        held = getattr(hook, "__self__", None)
        if isinstance(held, _Hook):
            yield held


@contextmanager
def recording_outputs(model: nn.Module, paths: Iterable[str]) -> Iterator[list[Tensor]]:
    """What modules put out inside, pass by pass; where one puts out a dict, its values.

    >>> with recording_outputs(resnet, ["layer3", "layer4"]) as features:
    ...     resnet(images)
    """
    seen: list[Tensor] = []

    def record(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(tensor.clone() for tensor in (output.values() if isinstance(output, Mapping) else [output]))

    hooks = [model.get_submodule(path).register_forward_hook(record) for path in paths]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def overriding_attributes(module: nn.Module, **others: Any) -> Iterator[None]:
    """Let attributes of a module be others: ``overriding_attributes(norm, running_mean=mean)``.

    The instance dictionary is looked up before ``nn.Module`` looks for parameters, buffers and children.
    """
    before = {name: module.__dict__[name] for name in others if name in module.__dict__}
    module.__dict__.update(others)
    try:
        yield
    finally:
        for name in others:
            module.__dict__.pop(name, None)
        module.__dict__.update(before)


def get_float_weight(model: nn.Module, point: QuantPoint) -> nn.Parameter:
    """The parameter at a weight point, whatever shadows it."""
    return _plain_weight(get_module(model, point), point)


def get_module(model: nn.Module, point: QuantPoint) -> nn.Module:
    try:
        return model.get_submodule(point.path)
    except AttributeError:
        hint = did_you_mean(point.path, [name for name, _ in model.named_modules()])
        name = type(model).__name__
        raise UserError(f"{name} has no module {point.path}: the points are of another model{hint}") from None


def _plain_weight(module: nn.Module, point: QuantPoint) -> nn.Parameter:
    weight = module._parameters.get(point.parameter)
    if weight is None:
        name = point.parameter
        raise UserError(f"{point.path} has no plain {name} parameter; remove the parametrization that computes it")
    return weight


class _Hook:
    """The hook at one side of one module. What it does can be exchanged, so that contexts nest."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None) -> None:
        self.module, self.point, self.action = module, point, action

    def registered(self) -> Iterator[RemovableHandle]:
        if self.point.side is Side.OUTPUT:
            yield self.module.register_forward_hook(self.on_output)
        else:
            yield self.module.register_forward_pre_hook(self.on_input)

    def changed(self) -> None:
        """There is another action from here on."""

    def removed(self) -> None:
        """The outermost context has been left."""

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.action is None:
            return None
        if not args:
            raise UserError(f"{self.point.path} must be called with its input as first positional argument")
        return (self.act(self.tensor(args[0])), *args[1:])

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        return None if self.action is None else self.act(self.tensor(output))

    def act(self, x: Tensor) -> Tensor:
        """Let the action happen, unseen by hooks of functions: what it calls is not of the module's forward."""
        assert self.action is not None
        with torch._C.DisableTorchFunction():
            return self.action(x)

    def tensor(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"the {self.point.side.value} of {self.point.path} is a {kind}; a point needs one tensor")
        return value


class _FunctionHook(_Hook):
    """At a side of a function that the module's own forward calls; within modules inside it is deaf."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None) -> None:
        super().__init__(module, point, action)
        self.calls = self.depth = 0

    def registered(self) -> Iterator[RemovableHandle]:
        yield self.module.register_forward_pre_hook(self.on_input)
        yield self.module.register_forward_hook(self.on_output, always_call=True)
        for child in _called_children(self.module):
            yield child.register_forward_pre_hook(partial(self._deeper, 1))
            yield child.register_forward_hook(partial(self._deeper, -1), always_call=True)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.calls = self.depth = 0
        _Functions(self).__enter__()

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        torch.overrides._pop_mode()

    def _deeper(self, by: int, *_: Any) -> None:
        self.depth += by

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives that is called somewhere in the module's forward."""
        point = self.point
        if self.action is None or self.depth or getattr(func, "__name__", "").strip("_") != point.function:
            return func(*args, **kwargs)
        self.calls += 1
        if point.call is not None and point.call != self.calls - 1:
            return func(*args, **kwargs)
        if point.side is Side.OUTPUT:
            return self.act(self.tensor(func(*args, **kwargs)))
        if point.operand >= len(args):
            raise UserError(f"{point.path} must call {point.function} with positional arguments, for {point.key}")
        changed = self.act(self.tensor(args[point.operand]))
        return func(*args[: point.operand], changed, *args[point.operand + 1 :], **kwargs)


class _Functions(TorchFunctionMode):
    """Shows a hook the functions that are called."""

    def __init__(self, hook: _FunctionHook) -> None:
        super().__init__()
        self._hook = hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._hook.called(func, args, kwargs or {})


def _called_children(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that its forward calls itself: a list of them is none that can be called."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _called_children(child)
        else:
            yield child


class _WeightHook(_Hook):
    """A weight is made once and shared by all passes, until a backward pass has used its graph up or it has changed."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None) -> None:
        super().__init__(module, point, action)
        self._parameter = _plain_weight(module, point)
        self._name = point.parameter
        self._before = {name: value for name, value in module.__dict__.items() if name == self._name}
        self._made: Tensor | None = None

    def changed(self) -> None:
        self._made = None
        if self.action is None:
            self.module.__dict__.pop(self._name, None)
        else:
            self._make()

    def removed(self) -> None:
        self._made = None  # its hook refers back to this object
        self.module.__dict__.pop(self._name, None)
        self.module.__dict__.update(self._before)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.action is not None and self._is_stale():
            self._make()

    def _make(self) -> None:
        self._version, self._has_graph, self._is_used_up = (
            tensor_version(self._parameter),
            torch.is_grad_enabled(),
            False,
        )
        self._made = self.act(self._parameter)
        if self._made.requires_grad and self._made is not self._parameter:
            self._made.register_hook(self._use_up)
        self.module.__dict__[self._name] = self._made

    def _is_stale(self) -> bool:
        if self._made is None or tensor_version(self._parameter) != self._version:
            return True
        return torch.is_grad_enabled() and (self._is_used_up or not self._has_graph)

    def _use_up(self, grad: Tensor) -> None:
        self._is_used_up = True
