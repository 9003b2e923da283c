"""Checks of the contexts of ``Quantization`` on a device: ranges, outputs and gradients of small networks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from support.devices.comparison import CheckResult, largest_relative_error, worst
from support.devices.targets import FLOAT64_ON_CPU, Target, dtype_name, each_memory_format
from support.networks import CifarResNet, D2ResNet, PlainNet
from torch import Tensor, nn

from ssql_det.quant import Bits, Quantization, Scheme

# In float64 rounding errors do not move a value to another integer; in float32 they may move a few.
_LIMITS = {torch.float64: 1e-9, torch.float32: 0.15}
_NETWORKS = (CifarResNet, D2ResNet, PlainNet)
_BIT_WIDTHS = (Bits(2, 4), Bits(4, 4), Bits(8, 8))
_SCHEMES = ("minmax", "mse", "weight=centred, act=percentile:99", "norms=re-estimated", "placement=integer")


def check_contexts(device: torch.device) -> Iterator[CheckResult]:
    """``observing``, then ``at`` with gradients, in both memory formats."""
    for dtype, limit in _LIMITS.items():
        for network_class in _NETWORKS:
            network = _build(network_class)
            expected = _observe_and_quantize(network, Target(torch.device("cpu"), dtype))
            errors = [
                [
                    largest_relative_error(*pair)
                    for pair in zip(_observe_and_quantize(network, target), expected, strict=True)
                ]
                for target in each_memory_format(device, dtype)
            ]
            title = f"{network_class.__name__}, {dtype_name(dtype)}"
            range_errors, output_errors = zip(*errors, strict=True)
            range_limit = 1e-12 if dtype == torch.float64 else 1e-4
            yield CheckResult(f"{title}: observed ranges", worst(range_errors), range_limit)
            yield CheckResult(f"{title}: quantized outputs and gradients", worst(output_errors), limit)


def check_calibration(device: torch.device) -> Iterator[CheckResult]:
    """``calibrate`` with each kind of scheme, then ``at``; ranges of the CPU serve on the device as well."""
    for scheme in _SCHEMES:
        network = _build(CifarResNet)
        expected = _calibrate(network, scheme, FLOAT64_ON_CPU)
        errors = [
            largest_relative_error(_calibrate(network, scheme, target, calibrated_on), expected)
            for target in each_memory_format(device, torch.float64)
            for calibrated_on in (None, FLOAT64_ON_CPU)
        ]
        yield CheckResult(f"calibrated with {scheme}: outputs", worst(errors), _LIMITS[torch.float64])


CHECKS = {"contexts": check_contexts, "calibration": check_calibration}


def _observe_and_quantize(network: nn.Module, target: Target) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The ranges; then for each bit-width the output and the gradient of the first layer's weight, in training mode."""
    network, images = target.place(network).train(), target.place_images(_make_images(6))
    quantization = Quantization(network)
    with quantization.observing(), torch.no_grad():
        network(images)
    results: dict[str, Tensor] = {}
    for bits in _BIT_WIDTHS:
        with quantization.at(bits):
            output = network(images)
        weight = next(network.parameters())
        results[f"{bits} output"] = output
        (results[f"{bits} gradient"],) = torch.autograd.grad(output.square().sum(), weight)
    observers = {point.key: quantization[point].observer for point in quantization.points}
    return {key: torch.stack(each.range) for key, each in observers.items() if each is not None}, results


def _calibrate(
    network: nn.Module, scheme: str, target: Target, calibrated_on: Target | None = None
) -> dict[str, Tensor]:
    """The output at each bit-width, of a network that was calibrated on ``calibrated_on`` (default: the target)."""
    start = calibrated_on or target
    network = start.place(network).eval()
    quantization = Quantization(network, scheme=Scheme.parse(scheme))
    batches = [start.place_images(batch) for batch in _make_images(8).split(4)]
    quantization.calibrate(batches)
    results = {}
    for bits in _BIT_WIDTHS:
        if quantization.scheme.norms == "re-estimated":
            quantization.correct_norms(bits, batches)
    network.to(target.device, target.dtype, memory_format=target.memory_format)
    with torch.no_grad():
        for bits in _BIT_WIDTHS:
            with quantization.at(bits):
                results[str(bits)] = network(target.place_images(_make_images(5, seed=2)))
    return results


def _build(network_class: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = network_class().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def _make_images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
