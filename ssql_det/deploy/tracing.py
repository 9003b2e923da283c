"""Trace a network: a copy that torch can trace for any number of regions, and what is said where it cannot."""

from __future__ import annotations

import copy
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ssql_det.core.errors import UserError, printable
from ssql_det.d2 import Conv2d
from ssql_det.detect.evaluation import fold_norm

_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
_CANNOT_BE_TRACED = (GuardOnDataDependentSymNode, torch.onnx.errors.OnnxExporterError)
_MAX_REASON_LENGTH = 200  # characters of a message of torch


def make_traceable(model: nn.Module, folded: bool = True) -> nn.Module:
    """A copy on the CPU in evaluation mode; with ``folded`` the engine's convs have their norms folded in.

    The engine's convs and torch's group norms ask in Python how large their batch is, which has no answer while a graph
    is traced for any number of regions; those of the copy do not.
    """
    traceable = copy.deepcopy(model).cpu().eval()
    for layer in traceable.modules():
        if isinstance(layer, Conv2d) and type(layer).forward is Conv2d.forward:
            parameters = fold_norm(layer) if folded else None
            if parameters is not None:
                layer.weight, layer.bias = map(nn.Parameter, parameters)
                layer.norm = None
            layer.forward = partial(_forward_conv, layer)  # type: ignore[method-assign]
        elif type(layer) is nn.GroupNorm:
            layer.forward = partial(_forward_group_norm, layer)  # type: ignore[method-assign]
    return traceable


def _forward_conv(layer: Any, x: Tensor) -> Tensor:
    x = nn.Conv2d.forward(layer, x)
    x = x if layer.norm is None else layer.norm(x)
    return x if layer.activation is None else layer.activation(x)


def _forward_group_norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    return torch.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)


@contextmanager
def translating_failures(graph: nn.Module) -> Iterator[None]:
    """Around tracing ``graph`` and translating it to ONNX: a part that cannot be is a ``UserError`` that names it."""
    try:
        with _quiet():
            yield
    except _CANNOT_BE_TRACED as failure:
        reason = printable(" ".join(_find_first_line(failure).split()), _MAX_REASON_LENGTH)
        raise UserError(f"{_find_part(graph, failure)} cannot be exported to ONNX: {reason}") from failure


def _find_first_line(failure: BaseException) -> str:
    """Of the exception that began it: the exporter's own have pages of advice."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    return next(iter(str(failure).strip().splitlines()), type(failure).__name__)


def _find_part(graph: nn.Module, failure: BaseException) -> str:
    """The innermost module of the graph that was running."""
    names = {id(module): name for name, module in graph.named_modules()}
    for frame, _ in reversed(list(traceback.walk_tb(failure.__traceback__))):
        module = frame.f_locals.get("self", frame.f_locals.get("layer"))
        if names.get(id(module)):
            return f"{names[id(module)]} ({type(module).__name__})"
    return "the network"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and the graphs that it prints, none of which a user can do something about."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
