"""How a mode takes hold of a network and lets go again: exchangeable hooks, and weights that shadow parameters.

The innermost context decides what happens at its points; leaving it, by whatever way, brings back what was there
before. No module is swapped and no parameter touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.quant.affine import version_of
from ssql_det.quant.points import QuantPoint, Side

Action = Callable[[Tensor], Tensor]


@contextmanager
def hooked(model: nn.Module, point: QuantPoint, action: Action | None) -> Iterator[None]:
    """Let ``action`` happen at a point, in place of what an outer context does there; ``None``: nothing.

    At a weight it makes, from the parameter, the weight that the module has inside.
    """
    module = module_at(model, point)
    hooks = module._forward_hooks if point.side is Side.OUTPUT else module._forward_pre_hooks
    held = (getattr(hook, "__self__", None) for hook in hooks.values())
    outer = next((hook for hook in held if isinstance(hook, _Hook) and hook.point.side is point.side), None)
    if outer is not None:
        before, outer.action = outer.action, action
        try:
            outer.changed()
            yield
        finally:
            outer.action = before
            outer.changed()
        return
    hook = _WeightHook(module, point, action) if point.is_weight else _Hook(point, action)
    if point.side is Side.OUTPUT:
        handle: Any = module.register_forward_hook(hook.on_output)
    else:
        handle = module.register_forward_pre_hook(hook.on_input)
    try:
        hook.changed()
        yield
    finally:
        handle.remove()
        hook.removed()


@contextmanager
def recorded(model: nn.Module, paths: Iterable[str]) -> Iterator[list[Tensor]]:
    """What modules put out inside, pass by pass; where one puts out a dict, its values.

    >>> with recorded(resnet, ["layer3", "layer4"]) as features:
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
def shadowed(module: nn.Module, **others: Any) -> Iterator[None]:
    """Let attributes of a module be others: ``shadowed(norm, running_mean=mean)``.

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


def float_weight(model: nn.Module, point: QuantPoint) -> nn.Parameter:
    """The parameter at a weight point, whatever shadows it."""
    return _plain_weight(module_at(model, point), point)


def module_at(model: nn.Module, point: QuantPoint) -> nn.Module:
    try:
        return model.get_submodule(point.path)
    except AttributeError:
        hint = did_you_mean(point.path, [name for name, _ in model.named_modules()])
        name = type(model).__name__
        raise UserError(f"{name} has no module {point.path}: the points are of another model{hint}") from None


def _plain_weight(module: nn.Module, point: QuantPoint) -> nn.Parameter:
    weight = module._parameters.get("weight")
    if weight is None:
        raise UserError(f"{point.path} has no plain weight parameter; remove the parametrization that computes it")
    return weight


class _Hook:
    """The hook at one side of one module. What it does can be exchanged, so that contexts nest."""

    def __init__(self, point: QuantPoint, action: Action | None) -> None:
        self.point, self.action = point, action

    def changed(self) -> None:
        """There is another action from here on."""

    def removed(self) -> None:
        """The outermost context has been left."""

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.action is None:
            return None
        if not args:
            raise UserError(f"{self.point.path} must be called with its input as first positional argument")
        return (self.action(self._tensor(args[0])), *args[1:])

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        return None if self.action is None else self.action(self._tensor(output))

    def _tensor(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"the {self.point.side.value} of {self.point.path} is a {kind}; a point needs one tensor")
        return value


class _WeightHook(_Hook):
    """A weight is made once and shared by all passes, until a backward pass has used its graph up or it has changed."""

    def __init__(self, module: nn.Module, point: QuantPoint, action: Action | None) -> None:
        super().__init__(point, action)
        self._module = module
        self._parameter = _plain_weight(module, point)
        self._before = {name: value for name, value in module.__dict__.items() if name == "weight"}
        self._made: Tensor | None = None

    def changed(self) -> None:
        self._made = None
        if self.action is None:
            self._module.__dict__.pop("weight", None)
        else:
            self._make(self.action)

    def removed(self) -> None:
        self._made = None  # its hook refers back to this object
        self._module.__dict__.pop("weight", None)
        self._module.__dict__.update(self._before)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.action is not None and self._is_stale():
            self._make(self.action)

    def _make(self, action: Action) -> None:
        self._version, self._has_graph, self._is_used_up = version_of(self._parameter), torch.is_grad_enabled(), False
        self._made = action(self._parameter)
        if self._made.requires_grad and self._made is not self._parameter:
            self._made.register_hook(self._use_up)
        self._module.__dict__["weight"] = self._made

    def _is_stale(self) -> bool:
        if self._made is None or version_of(self._parameter) != self._version:
            return True
        return torch.is_grad_enabled() and (self._is_used_up or not self._has_graph)

    def _use_up(self, grad: Tensor) -> None:
        self._is_used_up = True
