"""Correct norms and biases at a bit-width: ``norms=matched``, ``norms=re-estimated``, ``biases=corrected``.

Quantization changes the mean and variance of a norm's input. ``re-estimated`` uses the statistics of the quantized
network in place of the trained ones; it needs norms that are not frozen. ``matched`` gives the norm's output the mean
and variance that it has in the float network, on the same images: with mean and variance ``(mean, var)`` as trained,
``(m0, v0)`` of the float network's inputs and ``(m, v)`` of the quantized network's,

    ``r = (v + eps) / (v0 + eps)``, ``mean' = m + (mean - m0) * sqrt(r)``, ``var' + eps = (var + eps) * r``.

With ``biases=corrected`` quantized layers that no norm follows have ``bias' = bias + m0 - m``, with the means of the
layer's outputs (Nagel et al., ICCV 2019).

Statistics are taken batch by batch, and within a batch all earlier norms are corrected by that batch's own statistics,
so one float and one quantized pass suffice. The network itself is not changed: the corrected tensors are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.quant.forward import Forward, evaluating, forward_images
from ssql_det.quant.hooks import hooking, overriding_attributes
from ssql_det.quant.points import QuantPoint, Side
from ssql_det.quant.scheme import CORRECTED, MATCHED, RE_ESTIMATED, Scheme
from ssql_det.quant.tracing import trace_pass

_DEAD = 1e-3  # a channel of less variance than this fraction of eps keeps its variance: it is a constant
_FUNCTIONS = {nn.Conv2d: "conv2d", nn.ConvTranspose2d: "conv_transpose2d", nn.Linear: "linear"}
Quantizing = Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def correct_norms(
    model: nn.Module,
    scheme: Scheme,
    quantizing: Quantizing,
    points: Sequence[QuantPoint],
    batches: Iterable[Any],
    forward: Forward,
) -> dict[str, Tensor]:
    """Return the tensors that replace the network's at the bit-width of ``quantizing()``, by name.

    A batch needs several images: the variance within one image is smaller than that of the data. With several
    processes every rank runs all batches. Of a module that is called several times in a pass, as a head for all levels
    of an FPN, each call is matched by its own statistics, and the tensors are those of all calls.
    """
    if scheme.norms == RE_ESTIMATED:
        with quantizing():
            return estimate_norm_statistics(model, batches, forward)
    targets: list[_Target] | None = None
    with evaluating(model):
        for batch in track(batches, "matching norms"):
            if targets is None:
                norms, layers = find_norms_and_layers(model, points, batch, forward)
                paths = (norms if scheme.norms == MATCHED else []) + (layers if scheme.biases == CORRECTED else [])
                targets = [_Target(path, model.get_submodule(path)) for path in paths]
            for target in targets:
                target.start_batch()
            with _hooking_targets(model, targets, "record"):
                forward(model, batch)
            # Corrections come before quantization at the same output: hooks run in the order of registration.
            with _hooking_targets(model, targets, "correct"), quantizing():
                forward(model, batch)
    if targets is None:
        raise _no_images_error(f"norms={scheme.norms}, biases={scheme.biases}")
    if not targets:
        raise UserError(f"{scheme}: this network has no norm with statistics, and no layer without one, to correct")
    reached = (target for target in targets if target.quantized_moments.count)
    return {name: tensor for target in reached for name, tensor in target.compute_tensors().items()}


def has_trainable_norms(model: nn.Module) -> bool:
    """Whether the network has a BatchNorm that is not frozen."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def check_norms(model: nn.Module, norms: str) -> None:
    """Raise an error if there are no norms to re-estimate."""
    if norms == RE_ESTIMATED and not has_trainable_norms(model):
        raise UserError(
            "norms=re-estimated: this network has no BatchNorm that is not frozen; use norms=matched or norms=trained"
        )


# ---- re-estimated --------------------------------------------------------------------------------------------------


def estimate_norm_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Forward = forward_images
) -> dict[str, Tensor]:
    """The mean and variance of every BatchNorm's input, averaged over the batches, by the names of the norms' buffers.

    The network runs as it is at the call: for a bit-width's statistics, call this where that bit-width is in effect.
    Frozen norms stay as they are.
    """
    norms = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    statistics: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for path, norm in norms.items():
            initial = {"running_mean": torch.zeros_like(_get_buffer(norm, "running_mean"))}
            initial["running_var"] = torch.ones_like(_get_buffer(norm, "running_var"))
            statistics |= {f"{path}.{name}": tensor for name, tensor in initial.items()}
            count = torch.zeros_like(_get_buffer(norm, "num_batches_tracked"))
            # A synchronized norm would mix the ranks' batches, and Detectron2's has no average over all batches, which
            # is what momentum=None stands for.
            plain = {"forward": partial(_BatchNorm.forward, norm), "momentum": None}
            stack.enter_context(overriding_attributes(norm, **initial, num_batches_tracked=count, **plain))
            norm.train()
        with torch.no_grad():
            has_images = False
            for batch in track(batches, "re-estimating norms"):
                forward(model, batch)
                has_images = True
    if not has_images:
        raise _no_images_error(f"norms={RE_ESTIMATED}")
    return statistics


def _get_buffer(norm: nn.Module, name: str) -> Tensor:
    buffer = norm._buffers[name]
    if buffer is None:
        raise UserError("norms=re-estimated: a norm has no running statistics; use norms=trained")
    return buffer


def _no_images_error(key: str) -> UserError:
    return UserError(
        f"{key}: no images to compute the statistics of this bit-width from; of a saved quantization use the "
        "bit-widths that it was evaluated at, or calibrate again"
    )


# ---- matched -------------------------------------------------------------------------------------------------------


@dataclass
class _Moments:
    """Sums over all calls of a module, per channel and in float64."""

    count: int = 0
    mean_sum: Tensor | float = 0.0  # of mean * count
    square_sum: Tensor | float = 0.0  # of (var + mean^2) * count
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # mean and variance of each call of this batch

    def add(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Add a call's input, and return its mean and variance per channel (NaN if ``x`` is empty)."""
        reduced = [dim for dim in range(x.ndim) if dim != axis % x.ndim]
        var, mean = torch.var_mean(x.double(), reduced, correction=0)
        if count := x.numel() // max(x.shape[axis], 1):
            self.count += count
            self.mean_sum = self.mean_sum + mean * count
            self.square_sum = self.square_sum + (var + mean**2) * count
        return mean, var

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.mean_sum) / self.count

    @property
    def var(self) -> Tensor:
        return (torch.as_tensor(self.square_sum) / self.count - self.mean**2).clamp(min=0)


@dataclass
class _Target:
    """A norm, or a quantized layer without norm, whose output is matched."""

    path: str
    module: Any
    float_moments: _Moments = field(default_factory=_Moments)
    quantized_moments: _Moments = field(default_factory=_Moments)
    call: int = 0  # index of the next call within the quantized pass

    @property
    def is_norm(self) -> bool:
        return hasattr(self.module, "running_var")

    @property
    def axis(self) -> int:
        return -1 if isinstance(self.module, nn.Linear) else 1

    def record(self, x: Tensor) -> Tensor:
        """Record a call in the float pass."""
        self.float_moments.calls.append(self.float_moments.add(x, self.axis))
        return x

    def correct(self, x: Tensor) -> Tensor:
        """Record a call in the quantized pass; return the output as corrected by this call's own statistics."""
        moments = (*self.float_moments.calls[self.call], *self.quantized_moments.add(x, self.axis))
        self.call += 1
        if self.is_norm:
            mean, var = (each.to(x.dtype) for each in self._match_statistics(*moments))
            return F.batch_norm(x, mean, var, self.module.weight, self.module.bias, False, 0.0, self.module.eps)
        shift = (moments[0] - moments[2]).to(x.dtype)
        return x + shift.view([-1 if dim == self.axis % x.ndim else 1 for dim in range(x.ndim)])

    def start_batch(self) -> None:
        self.float_moments.calls.clear()
        self.call = 0

    def compute_tensors(self) -> dict[str, Tensor]:
        """The tensors that replace the module's, from the statistics of all batches."""
        old, new = self.float_moments, self.quantized_moments
        if self.is_norm:
            mean, var = self._match_statistics(old.mean, old.var, new.mean, new.var)
            pairs = {"running_mean": mean, "running_var": var}
            return {f"{self.path}.{name}": each.to(self.module.running_var) for name, each in pairs.items()}
        shift = (old.mean - new.mean).to(self.module.weight)
        return {f"{self.path}.bias": shift if self.module.bias is None else self.module.bias.detach() + shift}

    def _match_statistics(self, m0: Tensor, v0: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``mean'`` and ``var'`` of the formulas at the top of this file."""
        norm = self.module
        ratio = torch.where(v0 < _DEAD * norm.eps, 1.0, (v + norm.eps) / (v0 + norm.eps))
        var = (norm.running_var.double() + norm.eps) * ratio - norm.eps
        return m + (norm.running_mean.double() - m0) * ratio.sqrt(), var


def find_norms_and_layers(
    model: nn.Module, points: Sequence[QuantPoint], batch: Any, forward: Forward
) -> tuple[list[str], list[str]]:
    """Paths of the norms that have statistics, and of the quantized layers that no such norm follows."""
    modules = dict(model.named_modules())
    norms = [path for path, module in modules.items() if isinstance(getattr(module, "running_var", None), Tensor)]
    normalized = {chain.layer for chain in trace_pass(model, points, batch, forward).chains if chain.norm in norms}
    layers = [point.path for point in points if point.is_weight and point.path not in normalized]
    return norms, layers


@contextmanager
def _hooking_targets(model: nn.Module, targets: Sequence[_Target], action: str) -> Iterator[None]:
    """Call ``record`` or ``correct`` of each target, with the input of a norm, or the output of a layer before its
    activation. The result of ``correct`` replaces the output."""
    with ExitStack() as stack:
        for target in targets:
            method = getattr(target, action)
            if target.is_norm:
                hook = partial(_call_on_input, method)
                stack.callback(target.module.register_forward_hook(hook).remove)
            else:
                function = next(name for layer, name in _FUNCTIONS.items() if isinstance(target.module, layer))
                point = QuantPoint(target.path, Side.OUTPUT, function=function)
                stack.enter_context(hooking(model, point, method))
        yield


def _call_on_input(method: Callable[[Tensor], Tensor], norm: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    result = method(args[0])
    return output if result is args[0] else result
