"""What fake quantization costs on this machine: ``python benchmarks/fake_quant.py``; exit code 1 if a bar is missed.

1. Forward and backward of an activation's fake quantization, against the plain chain of torch operations.
2. Bytes kept for the backward pass, per element.
3. A float ResNet-18 forward with every activation point observed, against one without.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torchvision
from timing import alternate, report

from ssql_det.quant import Quantization, choose_qparams, fake_quantize


class Round(torch.autograd.Function):
    """The straight-through estimator that the plain chain needs."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def fake_quantize_cost(rounds: int) -> bool:
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

    return report("fake-quantize 64x64x32x32, forward + backward", *alternate(plain, ours, rounds), bar=0.5)


def bytes_kept() -> bool:
    x = torch.randn(64, 64, 32, 32, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    qparams = choose_qparams(x.detach().min(), x.detach().max(), 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fake_quantize(x, qparams)
    each = sum(kept) / x.numel()
    print(f"kept for backward: {each:.4f} bytes an element (bar 1, and the two scalars)")
    return sum(kept) <= x.numel() + 16


def observing_cost(rounds: int, batch: int, size: int) -> bool:
    model, images = torchvision.models.resnet18().eval(), torch.randn(batch, 3, size, size)
    quantization = Quantization(model)

    def plain() -> None:
        with torch.no_grad():
            model(images)

    def observed() -> None:
        with torch.no_grad(), quantization.observing():
            model(images)

    return report(
        f"ResNet-18 at {batch}x3x{size}x{size}, every point observed", *alternate(plain, observed, rounds), bar=1.1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="of each side, in turns (default: %(default)s)")
    rounds = parser.parse_args().rounds
    kept = [
        fake_quantize_cost(rounds),
        bytes_kept(),
        observing_cost(rounds, batch=8, size=224),
        observing_cost(rounds, batch=64, size=32),
    ]
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
