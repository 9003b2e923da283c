"""Blocks: the parts of a network that are reconstructed one after the other.

======== ===================================================== ===========================================
class    what runs                                             its inputs
======== ===================================================== ===========================================
Block    modules one after the other                           what the first module is called with
FpnLevel lateral conv, addition of the coarser map, output conv the backbone's map and the coarser level's sum
Layer    one layer, once for each of its calls in a block      a list of what it is called with
======== ===================================================== ===========================================

Inputs and outputs are tensors, or lists and tuples of them: a head of an RPN gets a list of levels, and returns a tuple
of two lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.quant.forward import Forward
from ssql_det.quant.hooks import overriding_attributes
from ssql_det.quant.points import find_blocks

OnInputs = Callable[[Any], None]


class _StopForward(Exception):  # noqa: N818 (no error)
    """Ends a forward pass after the inputs of a block are known."""


@dataclass(frozen=True)
class Block:
    """``modules`` are the paths of modules that are called one after the other, each with the former's output.

    If the first is called several times in a pass, its first call counts. ``has_regions``: the samples, along the first
    axis, are regions of images, not images.

    >>> block = Block("conv1", ("conv1",))
    >>> block.run(model, images).shape[1]
    24
    """

    name: str
    modules: tuple[str, ...]
    has_regions: bool = field(default=False, kw_only=True)

    def run(self, model: nn.Module, inputs: Any) -> Any:
        """Run the block alone on its inputs."""
        for path in self.modules:
            inputs = model.get_submodule(path)(inputs)
        return inputs

    @contextmanager
    def intercepting(self, model: nn.Module, on_inputs: OnInputs) -> Iterator[None]:
        """Call ``on_inputs`` with copies of the inputs in each forward pass, and end the pass by an exception."""
        with ExitStack() as stack:
            _hook_input(stack, model, self.modules[0], lambda value: on_inputs(copy_tensors(value)))
            _stop_at(stack, model, self.modules[0])
            yield

    @property
    def _end(self) -> str:
        """The module whose first call ends the block."""
        return self.modules[-1]

    @contextmanager
    def replacing_outputs(self, model: nn.Module, replace: Callable[[Any], Any]) -> Iterator[None]:
        """Let a forward pass go on with ``replace(output)`` for each output of the block; enter it for each pass."""
        is_over = False

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return None if is_over else replace(output)

        def end(*_: Any) -> None:
            nonlocal is_over
            is_over = True

        with ExitStack() as stack:  # hooks of the same module run in this order
            stack.callback(model.get_submodule(self.modules[-1]).register_forward_hook(hook).remove)
            stack.callback(model.get_submodule(self._end).register_forward_hook(end).remove)
            yield

    def split_layers(self, layers: Sequence[str]) -> tuple[Layer, ...]:
        """Those of the layers at these paths that are in the block, each as a block of its own."""
        prefixes = tuple(f"{path}." for path in self.modules)
        layers = [path for path in layers if f"{path}.".startswith(prefixes)]
        return tuple(Layer(path, (path,), self.modules[-1], has_regions=self.has_regions) for path in layers)


@dataclass(frozen=True)
class FpnLevel(Block):
    """``modules`` are the lateral and the output conv. ``coarser`` is the output conv of the next coarser level, whose
    input is upsampled and added; ``is_average`` halves the sum.

    The addition's own point, which only placement ``integer`` has, is left out in :meth:`run`.
    """

    coarser: str
    is_average: bool = False

    def run(self, model: nn.Module, inputs: Any) -> Any:
        features, coarser = inputs
        lateral, output = (model.get_submodule(path) for path in self.modules)
        total = lateral(features) + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
        return output(total / 2 if self.is_average else total)

    @contextmanager
    def intercepting(self, model: nn.Module, on_inputs: OnInputs) -> Iterator[None]:
        coarser: list[Any] = []
        with ExitStack() as stack:
            _hook_input(stack, model, self.coarser, lambda value: coarser.append(copy_tensors(value)))
            _hook_input(stack, model, self.modules[0], lambda value: on_inputs([copy_tensors(value), coarser.pop()]))
            _stop_at(stack, model, self.modules[0])
            yield


@dataclass(frozen=True)
class Layer(Block):
    """One layer. Its inputs are those of all its calls until the module ``last`` of its block has run, as those of a
    head for all levels of an FPN."""

    last: str

    @property
    def _end(self) -> str:
        return self.last

    def run(self, model: nn.Module, inputs: Any) -> Any:
        layer = model.get_submodule(self.modules[0])
        return [layer(each) for each in inputs]

    @contextmanager
    def intercepting(self, model: nn.Module, on_inputs: OnInputs) -> Iterator[None]:
        calls: list[Any] = []

        def stop(*_: Any) -> None:
            on_inputs([*calls])
            calls.clear()
            raise _StopForward

        with ExitStack() as stack:
            _hook_input(stack, model, self.modules[0], lambda value: calls.append(copy_tensors(value)))
            stack.callback(model.get_submodule(self.last).register_forward_hook(stop).remove)
            yield


@contextmanager
def recording_inputs(model: nn.Module, block: Block) -> Iterator[Callable[[Forward, Any], Any]]:
    """A function that runs the network on a batch until the block's inputs are known, and returns copies of them.

    Enter this before contexts of points, so that the inputs are those before the block's own input points. Inside, the
    block cannot be run alone.
    """
    recorded: list[Any] = []

    def record(forward: Forward, batch: Any) -> Any:
        try:
            forward(model, batch)
        except _StopForward:
            return recorded.pop()
        raise UserError(f"a forward pass of {type(model).__name__} does not reach the block {block.name}")

    with block.intercepting(model, recorded.append):
        yield record


def find_backbone_blocks(model: nn.Module, root: str = "") -> tuple[Block, ...]:
    """The blocks of the backbone at ``root``, in the order of their modules.

    >>> [block.name for block in find_backbone_blocks(model)][:2]
    ['conv1', 'layer1.0']
    """
    prefix = f"{root}." if root else ""
    return tuple(Block(f"{prefix}{path}", (f"{prefix}{path}",)) for path in find_blocks(model.get_submodule(root)))


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to each tensor of a tensor, list or tuple.

    >>> map_tensors(lambda x: x.sum(), [torch.ones(2), (torch.ones(3),)])
    [tensor(2.), (tensor(3.),)]
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, each) for each in value)
    raise UserError(f"a block is called with or returns a {type(value).__name__}; supported are tensors and lists")


def list_tensors(value: Any) -> list[Tensor]:
    """The tensors in a tensor, list or tuple, in order."""
    found: list[Tensor] = []
    map_tensors(lambda x: found.append(x) or x, value)  # type: ignore[func-returns-value]
    return found


def replace_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The structure of ``value`` with these tensors in order."""
    return map_tensors(lambda _: next(tensors), value)


def copy_tensors(value: Any) -> Any:
    """Copies on the CPU, which later operations in place do not change."""
    return map_tensors(lambda x: x.detach().cpu() if x.is_cuda else x.detach().clone(), value)


def _hook_input(stack: ExitStack, model: nn.Module, path: str, on_input: OnInputs) -> None:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) != 1:
            raise UserError(f"{path} must be called with one argument to be reconstructed, got {len(args)}")
        on_input(args[0])

    stack.callback(model.get_submodule(path).register_forward_pre_hook(hook).remove)


def _stop_at(stack: ExitStack, model: nn.Module, path: str) -> None:
    """End a pass in the forward of a module, that is after its hooks, which may have to clean up."""

    def stop(*_: Any) -> None:
        raise _StopForward

    stack.enter_context(overriding_attributes(model.get_submodule(path), forward=stop))
