"""Checks of quantization arithmetic on a device: to the last bit what the formulas give on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from support.devices.comparison import CheckResult, count_differences, relative_error, worst
from support.devices.targets import dtype_name
from support.weight_quantizers import build_weight_quantizer
from torch import Tensor

from ssql_det.quant import (
    ACTIVATIONS,
    WEIGHTS,
    QParams,
    Quantizer,
    QuantPoint,
    RangeQuantizer,
    Side,
    choose_qparams,
    fake_quantize,
)
from ssql_det.quant.quantizers import Histogram, MinMaxObserver, TensorSpec

BIT_WIDTHS = (2, 4, 8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Sums over a channel differ in their order; then a gradient in half precision may differ in its last bit.
_SUM_LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
_WEIGHT_SHAPES = {(16, 8, 3, 3): 0, (8, 16, 2, 2): 1, (32, 48): 0}  # and the axis of their channels
_LARGE = (5, 32, 61, 67)  # more than a block on the CPU, and no multiple of a block


def check_formulas(device: torch.device) -> Iterator[CheckResult]:
    """``fake_quantize`` against its formulas in plain torch operations on the CPU."""
    for name, (x, qparams) in _make_cases().items():
        forward, backward, scale_errors = 0.0, 0.0, [0.0]
        for dtype in DTYPES:
            values = x.to(dtype)
            grad = _random(9, *x.shape).to(dtype)
            expected, passes = _apply_formulas(values, qparams)
            for layout in _layouts(values):
                moved = layout.to(device).detach().requires_grad_()
                output = fake_quantize(moved, qparams)
                forward += count_differences(output, expected)
                with torch.no_grad():
                    forward += count_differences(fake_quantize(moved, qparams), expected)
                (found,) = torch.autograd.grad(output, moved, grad.to(device))
                backward += count_differences(found, torch.where(passes, grad, 0))
            if x.numel() and (qparams.scale != 0).all():
                scale_errors.append(_compare_scale_gradients(values, grad, qparams, device))
        yield CheckResult(f"fake_quantize, {name}: elements that differ", forward, 0)
        yield CheckResult(f"fake_quantize, {name}: gradients that differ", backward, 0)
        yield CheckResult(f"fake_quantize, {name}: gradient of the scale", worst(scale_errors), 1e-4)


def check_activation_quantizers(device: torch.device) -> Iterator[CheckResult]:
    """Ranges that were observed on the CPU, applied on the device; then ranges that the device observes."""
    x = _random(0, 4, 16, 13, 11).abs().pow(1.5) * _random(1, 4, 16, 13, 11).sign() + 0.2
    grad = _random(2, *x.shape)
    for name in _own_quantizers(ACTIVATIONS):
        reference = ACTIVATIONS.get(name)(TensorSpec(QuantPoint("relu", Side.OUTPUT)))
        reference.observe(0.9 * x)  # so that some values lie outside of the range
        forward, backward, integers, scales = 0.0, 0.0, 0.0, []
        for bits in BIT_WIDTHS:
            for dtype in DTYPES:
                for layout in _layouts(x.to(dtype)):
                    expected = _run(reference, x.to(dtype), grad.to(dtype), bits)
                    found = _run(_move(reference, device), layout.to(device), grad.to(dtype).to(device), bits)
                    forward += count_differences(found[0], expected[0])
                    backward += count_differences(found[1], expected[1])
            integers += _count_other_integers(reference, x, device, bits)
            if isinstance(reference, RangeQuantizer):
                scales.append(_compare_own_ranges(name, x, reference, device, bits))
        yield CheckResult(f"activation quantizer {name}: elements that differ", forward, 0)
        yield CheckResult(f"activation quantizer {name}: gradients that differ", backward, 0)
        yield CheckResult(f"activation quantizer {name}: integers that differ", integers, 0)
        if scales:
            yield CheckResult(
                f"activation quantizer {name}: scale and zero point of its own range", worst(scales), 1e-6
            )


def check_weight_quantizers(device: torch.device) -> Iterator[CheckResult]:
    """Weights per channel, with scales that the device computes itself."""
    for name in _own_quantizers(WEIGHTS):
        forward, integers = 0.0, 0.0
        gradients: dict[torch.dtype, list[float]] = {dtype: [] for dtype in DTYPES}
        for shape, axis in _WEIGHT_SHAPES.items():
            weight, grad = _random(3, *shape), _random(4, *shape)
            weight.select(axis, 5).zero_()
            spec = TensorSpec(QuantPoint("conv", Side.WEIGHT), shape, axis)
            for bits in BIT_WIDTHS:
                reference = build_weight_quantizer(name, spec, weight, bits)
                for dtype in DTYPES:
                    expected = _run(reference, weight.to(dtype), grad.to(dtype), bits)
                    for layout in _layouts(weight.to(dtype)):
                        found = _run(_move(reference, device), layout.to(device), grad.to(dtype).to(device), bits)
                        forward += count_differences(found[0], expected[0])
                        gradients[dtype].append(relative_error(found[1], expected[1]))
                integers += _count_other_integers(reference, weight, device, bits)
        yield CheckResult(f"weight quantizer {name}: elements that differ", forward, 0)
        yield CheckResult(f"weight quantizer {name}: integers that differ", integers, 0)
        for dtype, errors in gradients.items():
            yield CheckResult(
                f"weight quantizer {name}: gradient in {dtype_name(dtype)}", worst(errors), _SUM_LIMITS[dtype]
            )


def check_observers(device: torch.device) -> Iterator[CheckResult]:
    """Ranges and counts of two batches; the second one is wider, so that bins of a histogram are merged."""
    for observer_class in (MinMaxObserver, Histogram):
        differences = 0.0
        for dtype in DTYPES:
            batches = [_random(5, *_LARGE).to(dtype), (3 * _random(6, 2, 8, 9, 7)).to(dtype)]
            expected = observer_class()
            for batch in batches:
                expected.update(batch)
            for layouts in zip(*map(_layouts, batches), strict=True):
                observer = observer_class()
                for layout in layouts:
                    observer.update(layout.to(device))
                pairs = [*zip(observer.range, expected.range, strict=True)]
                if observer.sums is not None and expected.sums is not None:
                    pairs.append((observer.sums, expected.sums))
                differences += sum(count_differences(*pair) for pair in pairs)
        yield CheckResult(f"{observer_class.__name__}: bounds and counts that differ", differences, 0)


CHECKS = {
    "formulas": check_formulas,
    "activation quantizers": check_activation_quantizers,
    "weight quantizers": check_weight_quantizers,
    "observers": check_observers,
}


def _make_cases() -> dict[str, tuple[Tensor, QParams]]:
    """Tensors and how to quantize them; all scales are on the CPU."""
    x, weight = _random(7, *_LARGE), _random(8, 24, 5, 3, 3)
    low, high = torch.tensor(-1.5), torch.tensor(2.25)
    cases = {f"{bits} bits": (x, choose_qparams(low, high, bits)) for bits in (*BIT_WIDTHS, 16)}
    halves = torch.arange(-40, 40).float() / 2
    cases["values between two integers"] = (halves, QParams(torch.tensor(1.0), torch.tensor(3.0), 0, 15))
    cases["scale 0"] = (_random(3, 2, 3, 4, 4), choose_qparams(low, low, 4))
    max_abs = weight.abs().amax((1, 2, 3), keepdim=True) * 0.8
    max_abs[3] = 0
    cases["per output channel"] = (weight, choose_qparams(-max_abs, max_abs, 4, symmetric=True))
    bounds = x.amin((0, 2, 3), keepdim=True) * 0.7, x.amax((0, 2, 3), keepdim=True) * 0.7
    cases["per channel of activations"] = (x, choose_qparams(*bounds, 4))
    cases["a scalar"] = (torch.tensor(0.7), choose_qparams(low, high, 3))
    cases["no element"] = (torch.zeros(0, 3, 2, 2), choose_qparams(low, high, 3))
    cases["a repeated row"] = (_random(2, 1, 33).expand(40, 33), choose_qparams(low, high, 4))
    return cases


def _apply_formulas(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """The result, and where the gradient passes."""
    safe_scale = torch.where(qparams.scale == 0, 1, qparams.scale)
    rounded = torch.round(x.float() / safe_scale) + qparams.zero_point
    integers = rounded.clamp(qparams.qmin, qparams.qmax)
    output = ((integers - qparams.zero_point) * qparams.scale).to(x.dtype)
    return torch.where(qparams.scale == 0, x, output), (integers == rounded) | (qparams.scale == 0)


def _compare_scale_gradients(x: Tensor, grad: Tensor, qparams: QParams, device: torch.device) -> float:
    """The error of the gradient of a learned scale; in the range d(x_q)/ds = q - z - x / s, outside q - z."""
    scale = qparams.scale.double()
    ratio = x.double() / scale
    rounded = (x.float() / qparams.scale).round() + qparams.zero_point  # in float32, which decides near one half
    integers = rounded.clamp(qparams.qmin, qparams.qmax)
    expected = (grad * (integers - qparams.zero_point - torch.where(integers == rounded, ratio, 0))).sum_to_size(
        scale.shape
    )
    learned = qparams.scale.to(device).detach().requires_grad_()
    moved = QParams(learned, qparams.zero_point.to(device), qparams.qmin, qparams.qmax)
    (found,) = torch.autograd.grad(fake_quantize(x.to(device), moved), learned, grad.to(device))
    return relative_error(found, expected)


def _compare_own_ranges(name: str, x: Tensor, reference: RangeQuantizer, device: torch.device, bits: int) -> float:
    """The error of scale and zero point where the device observes ``x`` itself."""
    quantizer = ACTIVATIONS.get(name)(reference.spec)
    assert isinstance(quantizer, RangeQuantizer)
    quantizer.to(device).observe((0.9 * x).to(device))
    found, expected = quantizer.get_qparams(bits), reference.get_qparams(bits)
    pairs = ((found.scale, expected.scale), (found.zero_point, expected.zero_point))
    return worst(relative_error(*pair) for pair in pairs)


def _count_other_integers(reference: Quantizer, x: Tensor, device: torch.device, bits: int) -> float:
    found, expected = _move(reference, device).quantize(x.to(device), bits), reference.quantize(x, bits)
    assert found is not None
    assert expected is not None
    return count_differences(found.integers, expected.integers)


def _own_quantizers(registry: object) -> list[str]:
    """The names that this package registers, without those of plugins."""
    return [name for name in registry if registry.get(name).__module__.startswith("ssql_det.")]  # type: ignore[attr-defined]


def _run(quantizer: Quantizer, x: Tensor, grad: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The result and the gradient of ``x``."""
    x = x.detach().requires_grad_()
    output = quantizer(x, bits)
    return output, torch.autograd.grad(output, x, grad)[0]


def _move(quantizer: Quantizer, device: torch.device) -> Quantizer:
    """A copy with its parameters on the device; what it observed stays where it is."""
    return copy.deepcopy(quantizer).to(device)


def _layouts(x: Tensor) -> Iterator[Tensor]:
    """The same values stored in other ways."""
    yield x
    if x.ndim == 4:
        yield x.contiguous(memory_format=torch.channels_last)
    if x.ndim > 1:
        yield x.transpose(0, 1).contiguous().transpose(0, 1)  # the first axis is not the outermost in memory
    if x.ndim:
        yield torch.stack([x, x + 1], dim=-1)[..., 0]  # with a gap after each element


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
