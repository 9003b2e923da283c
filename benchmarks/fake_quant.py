"""Time and memory of fake quantization: ``python benchmarks/fake_quant.py``; exit code 1 if a limit is exceeded.

1. Forward and backward of fake-quantizing an activation, compared with plain torch operations.
2. Bytes saved for the backward pass, per element.
3. A float forward of ResNet-18 that observes every activation point, compared with one that does not.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torchvision
from timing import alternate, report

from ssql_det.quant import Quantization, choose_qparams, fake_quantize


class Round(torch.autograd.Function):
    """The straight-through estimator for plain torch operations."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def measure_fake_quantize(rounds: int) -> bool:
    x = torch.randn(64, 64, 32, 32, requires_grad=True)
    grad = torch.randn_like(x)
    qparams = choose_qparams(x.detach().min(), x.detach().max(), 4)
    scale, zero_point = qparams.scale, qparams.zero_point

    def plain() -> None:
        quantized = torch.clamp(Round.apply(x / scale) + zero_point, 0, 15)
        ((quantized - zero_point) * scale).backward(grad)
        x.grad = None

    def ours() -> None:
        fake_quantize(x, qparams).backward(grad)
        x.grad = None

    return report("fake-quantize 64x64x32x32, forward + backward", *alternate(plain, ours, rounds), limit=0.5)


def measure_saved_bytes() -> bool:
    x = torch.randn(64, 64, 32, 32, requires_grad=True)
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    qparams = choose_qparams(x.detach().min(), x.detach().max(), 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fake_quantize(x, qparams)
    per_element = sum(saved) / x.numel()
    print(f"saved for the backward pass: {per_element:.4f} bytes per element (limit: 1, and two scalars)")
    return sum(saved) <= x.numel() + 16


def measure_observing(rounds: int, batch: int, size: int) -> bool:
    model, images = torchvision.models.resnet18().eval(), torch.randn(batch, 3, size, size)
    quantization = Quantization(model)

    def plain() -> None:
        with torch.no_grad():
            model(images)

    def observed() -> None:
        with torch.no_grad(), quantization.observing():
            model(images)

    return report(
        f"ResNet-18 at {batch}x3x{size}x{size}, observing every point", *alternate(plain, observed, rounds), limit=1.1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="timed runs of each function (default: %(default)s)")
    rounds = parser.parse_args().rounds
    is_kept = [
        measure_fake_quantize(rounds),
        measure_saved_bytes(),
        measure_observing(rounds, batch=8, size=224),
        measure_observing(rounds, batch=64, size=32),
    ]
    sys.exit(0 if all(is_kept) else 1)


if __name__ == "__main__":
    main()
