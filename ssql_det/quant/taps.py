"""How a mode takes hold of a network and lets go again: exchangeable hooks, and weights that shadow parameters.

The innermost block decides what happens at its points; leaving it, by whatever way, brings back what was
there before. No module is swapped and no parameter touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.quant.points import QuantPoint, Side

Action = Callable[[Tensor], Tensor]
OWN = object()  # what a module was built with


@contextmanager
def tapped(model: nn.Module, point: QuantPoint, action: Action | None) -> Iterator[None]:
    """Let ``action`` happen at an activation point, in place of what an outer block does there; ``None``: nothing."""
    module = module_at(model, point)
    hooks = module._forward_pre_hooks if point.side is Side.INPUT else module._forward_hooks
    outer = next((tap for hook in hooks.values() if isinstance(tap := getattr(hook, "__self__", None), _Tap)), None)
    if outer is not None:
        before, outer.action = outer.action, action
        try:
            yield
        finally:
            outer.action = before
        return
    tap = _Tap(point, action)
    if point.side is Side.INPUT:
        handle = module.register_forward_pre_hook(tap.on_input)
    else:
        handle = module.register_forward_hook(tap.on_output)
    try:
        yield
    finally:
        handle.remove()


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
    """Let attributes of a module be others, or with ``OWN`` its own parameters: ``shadowed(conv, weight=quantized)``.

    The instance dictionary is looked up before ``nn.Module`` looks for parameters and children, and only there.
    """
    before = {name: module.__dict__.pop(name) for name in others if name in module.__dict__}
    module.__dict__.update((name, other) for name, other in others.items() if other is not OWN)
    try:
        yield
    finally:
        for name in others:
            module.__dict__.pop(name, None)
        module.__dict__.update(before)


def float_weight(model: nn.Module, point: QuantPoint) -> nn.Parameter:
    """The parameter at a weight point, whatever shadows it."""
    weight = module_at(model, point)._parameters.get("weight")
    if weight is None:
        raise UserError(f"{point.path} has no plain weight parameter; remove the parametrization that computes it")
    return weight


def module_at(model: nn.Module, point: QuantPoint) -> nn.Module:
    try:
        return model.get_submodule(point.path)
    except AttributeError:
        hint = did_you_mean(point.path, [name for name, _ in model.named_modules()])
        name = type(model).__name__
        raise UserError(f"{name} has no module {point.path}: the points are of another model{hint}") from None


class _Tap:
    """The hook at one side of one module. What it does can be exchanged, so that blocks nest."""

    def __init__(self, point: QuantPoint, action: Action | None) -> None:
        self.point, self.action = point, action

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
