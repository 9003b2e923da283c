"""Tune what a bit-width may change cheaply, so that the quantized network gives the float network's outputs.

Trained are the gains and shifts of norms, the biases of layers without norm, and the steps of trainable activation
quantizers; weights and their rounding stay. The targets are the outputs of the float network itself, so no labels are
needed (distillation, Hinton et al., 2015; for norms alone: Li et al., "norm tweaking", AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.ptq.steps import copy_trainable, make_groups
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.bits import format_bits
from ssql_det.quant.forward import Forward, evaluating, freezing
from ssql_det.quant.norms import find_norms_and_layers
from ssql_det.quant.points import assign_bits
from ssql_det.quant.points.family import count_output_channels
from ssql_det.quant.repair import Repair

_LEARNING_RATE = 1e-2  # of gains, shifts and biases, and in units of each step; falls to 0 as a cosine
ComputeLoss = Callable[[nn.Module, int], Tensor]
"""The difference between the network, as it is at the call, and the float network on the batch of an index."""


def tune(
    quantization: Quantization,
    bits: Bits,
    batches: Sequence[Any],
    compute_loss: ComputeLoss,
    steps: int,
    forward: Forward,
    overrides: Mapping[str, Bits] | None = None,
    seed: int = 0,
    learning_rate: float = _LEARNING_RATE,
) -> list[float]:
    """Tune a bit-width in place for some steps of Adam, one batch each; return the losses."""
    model = quantization.model
    repair = quantization.repairs.setdefault(format_bits(bits, overrides), Repair())
    original = Repair(dict(repair.tensors), dict(repair.quantizers))
    groups = [*_prepare_tensors(quantization, repair, batches[0], forward, learning_rate)]
    assigned = assign_bits(quantization.points, bits, overrides)
    point_bits = {point: each for point, each in assigned.items() if each is not None and not point.is_weight}
    activations = [point for point in point_bits if not point.is_weight]
    trained = copy_trainable({point: repair.quantizers.get(point, quantization[point]) for point in activations})
    repair.quantizers |= trained
    groups += make_groups(trained, point_bits, learning_rate)
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(batches), generator=generator) for _ in range(-(-steps // len(batches)))])
    losses = []
    try:
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(freezing(model))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(quantization.applying(bits, overrides, folded=False))
            for index in track(order[:steps].tolist(), f"tuning at {format_bits(bits, overrides)}"):
                loss = compute_loss(model, index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
    except BaseException:
        repair.tensors, repair.quantizers = original.tensors, original.quantizers
        raise
    repair.tensors = {name: tensor.detach() for name, tensor in repair.tensors.items()}
    for quantizer in repair.quantizers.values():
        quantizer.requires_grad_(False)
    return losses


def _prepare_tensors(
    quantization: Quantization, repair: Repair, batch: Any, forward: Forward, learning_rate: float
) -> Iterator[dict[str, Any]]:
    """Replace gains, shifts and biases by parameters; yield them for the optimizer."""
    model = quantization.model
    norms, layers = find_norms_and_layers(model, quantization.points, batch, forward)
    names = [(path, name) for path in norms for name in ("weight", "bias")] + [(path, "bias") for path in layers]
    for path, name in names:
        module: Any = model.get_submodule(path)
        tensor = repair.tensors.get(f"{path}.{name}", getattr(module, name))
        if tensor is None and path in norms:
            continue  # a norm without gains and shifts
        if tensor is None:
            tensor = module.weight.new_zeros(count_output_channels(module))
        parameter = nn.Parameter(tensor.detach().clone())
        repair.tensors[f"{path}.{name}"] = parameter
        yield {"params": [parameter], "lr": learning_rate}
