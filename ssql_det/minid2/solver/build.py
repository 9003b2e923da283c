"""Building the optimizer, with parameter groups and gradient clipping, and the schedule of ``SOLVER``."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import CfgNode
from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

Groups = list[dict[str, Any]]

NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm),
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """SGD on the trainable parameters."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    sgd = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    clipping: Optimizer = maybe_add_gradient_clipping(cfg, sgd)
    return clipping


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> Groups:
    """Parameter groups with settings for norms, for biases, by ``lr_factor_func`` of the full name, and by last name.

    A later setting overrides an earlier one; without any, the optimizer's defaults apply.

    >>> groups = get_default_optimizer_params(nn.BatchNorm2d(2), weight_decay_norm=0.0)
    >>> [group["weight_decay"] for group in groups]
    [0.0]
    """
    if base_lr is None and (bias_lr_factor not in (None, 1.0) or lr_factor_func is not None):
        raise ValueError("bias_lr_factor and lr_factor_func need base_lr, which is not given")
    said = {"lr": base_lr, "weight_decay": weight_decay}
    defaults = {name: value for name, value in said.items() if value is not None}
    of_biases = {}
    if base_lr is not None and bias_lr_factor not in (None, 1.0):
        of_biases["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        of_biases["weight_decay"] = weight_decay_bias
    overrides = dict(overrides or {})
    if of_biases:
        if "bias" in overrides:
            raise ValueError("overrides has 'bias', which bias_lr_factor or weight_decay_bias sets as well")
        overrides["bias"] = of_biases

    groups: Groups = []
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            group: dict[str, Any] = dict(defaults)
            if isinstance(module, NORMS) and weight_decay_norm is not None:
                group["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                group["lr"] *= lr_factor_func(f"{module_name}.{name}")
            group |= overrides.get(name, {})
            groups.append({"params": [parameter], **group})
    return reduce_param_groups(groups)


def reduce_param_groups(params: Groups) -> Groups:
    """Merge groups with equal settings, which makes fused optimizers faster.

    Groups are in the order of their first parameters; of a parameter that occurs twice the last settings apply.
    """
    merged: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for item in _expand_param_groups(params):
        members = {name: item.pop(name) for name in ("params", "param_names") if name in item}
        group = merged.setdefault(tuple(item.items()), item)
        for name, value in members.items():
            group.setdefault(name, []).extend(value)
    return list(merged.values())


def _expand_param_groups(params: Groups) -> Groups:
    """Split groups into one for each parameter."""
    expanded: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    for item in params:
        settings = {name: value for name, value in item.items() if name not in ("params", "param_names")}
        for index, parameter in enumerate(item["params"]):
            own: dict[str, Any] = {name: [item[name][index]] for name in ("params", "param_names") if name in item}
            expanded[parameter] |= own | settings
    return list(expanded.values())


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: Any) -> Any:
    """If ``SOLVER.CLIP_GRADIENTS`` is enabled, let an optimizer or optimizer class clip gradients before each step.

    Each parameter is clipped on its own: "norm" bounds the norm of its gradient, not the total norm.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    if isinstance(optimizer, type):
        return _clipping_class(optimizer, _gradient_clipper(cfg))
    optimizer.__class__ = _clipping_class(type(optimizer), _gradient_clipper(cfg))
    return optimizer


def _gradient_clipper(cfg: CfgNode) -> Callable[[Tensor], object]:
    clipping = cfg.SOLVER.CLIP_GRADIENTS.clone()
    if clipping.CLIP_TYPE == "value":
        return lambda parameter: nn.utils.clip_grad_value_(parameter, clipping.CLIP_VALUE)
    if clipping.CLIP_TYPE == "norm":
        return lambda parameter: nn.utils.clip_grad_norm_(parameter, clipping.CLIP_VALUE, clipping.NORM_TYPE)
    raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clipping.CLIP_TYPE!r}; it must be 'value' or 'norm'")


def _clipping_class(base: type[Optimizer], clip: Callable[[Tensor], object]) -> type[Optimizer]:
    def step(self: Optimizer, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                clip(parameter)
        base.step(self, closure)

    return type(f"{base.__name__}WithGradientClip", (base,), {"step": step})


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that ``SOLVER.LR_SCHEDULER_NAME`` names, with warm-up; it is stepped each iteration."""
    solver = cfg.SOLVER
    multiplier = WarmupParamScheduler(
        _schedule(cfg),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)


def _schedule(cfg: CfgNode) -> ParamScheduler:
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
        if len(steps) < len(solver.STEPS):
            late = sorted(set(solver.STEPS).difference(steps))
            logging.getLogger(__name__).warning(f"SOLVER.STEPS {late} are ignored: MAX_ITER is {solver.MAX_ITER}")
        rates = [solver.GAMMA**decays for decays in range(len(steps) + 1)]
        return MultiStepParamScheduler(rates, milestones=steps, num_updates=solver.MAX_ITER)
    if name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        assert 0 <= end <= 1, f"SOLVER.BASE_LR_END {solver.BASE_LR_END} is not between 0 and BASE_LR {solver.BASE_LR}"
        return CosineParamScheduler(1, end)
    if name == "WarmupStepWithFixedGammaLR":
        return StepWithFixedGammaParamScheduler(
            base_value=1.0, num_decays=solver.NUM_DECAYS, gamma=solver.GAMMA, num_updates=solver.MAX_ITER
        )
    raise ValueError(
        f"Unknown LR scheduler: SOLVER.LR_SCHEDULER_NAME is {name!r}; there are WarmupMultiStepLR, WarmupCosineLR and "
        "WarmupStepWithFixedGammaLR"
    )
