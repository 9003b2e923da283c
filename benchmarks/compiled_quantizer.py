"""Would ``torch.compile`` make SSQL's quantizers faster on a CPU? ``python benchmarks/compiled_quantizer.py``

Alternates steps of SSQL with the quantizer of activations as it is, which works block by block in the cache, and fused
into one pass by ``torch.compile`` (needs a C++ compiler). Both give the same losses, bit for bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import alternate
from torch import Tensor

from ssql_det.backbones import build_backbone
from ssql_det.quant import SampledBits, affine
from ssql_det.ssl import SSQL, SimSiam

NETWORKS = {"resnet50": (128, 16), "cifar_resnet18": (32, 64)}  # pixels, images
block_by_block = affine._fake_quantize


@torch.compile(dynamic=True, fullgraph=True)
def quantize_in_one_pass(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: Tensor, qmax: Tensor, out: Tensor, in_range: Tensor
) -> None:
    rounded = torch.round(x.float() / scale) + zero_point
    clamped = torch.clamp(rounded, qmin, qmax)
    out.copy_((clamped - zero_point) * scale)
    in_range.copy_(torch.where(rounded == clamped, 1.0, 0.0).to(torch.uint8))  # storing booleans is 20 times slower


def compiled(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, in_range: Tensor | None = None
) -> Tensor:
    if in_range is None or scale.ndim:  # without gradients, or a weight
        return block_by_block(x, scale, zero_point, qmin, qmax, in_range)
    out = torch.empty_like(x)
    flat_x, flat_out, flat_mask = (affine.in_memory_order(each.detach()).view(-1) for each in (x, out, in_range))
    bounds = torch.tensor([qmin, qmax], dtype=torch.float32).unbind()
    safe_scale = affine._replace_zeros(scale)
    quantize_in_one_pass(flat_x, safe_scale, zero_point, *bounds, flat_out, flat_mask.view(torch.uint8))
    return affine._restore_zero_scale(scale, x, out)


def make_step(arch: str, dtype: torch.dtype, quantize: Callable[..., Tensor]) -> Callable[[], float]:
    torch.manual_seed(0)
    side, count = NETWORKS[arch]
    network = SSQL(SimSiam(build_backbone(arch)), SampledBits(seed=0)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    views = [torch.randn(count, 3, side, side) for _ in range(2)]
    steps = iter(range(1 << 30))

    def take_step() -> float:
        affine._fake_quantize = quantize
        with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            loss = network(views, next(steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return take_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for arch in NETWORKS:
        for dtype in (torch.float32, torch.bfloat16):
            steps = [make_step(arch, dtype, quantize) for quantize in (block_by_block, compiled)]
            losses = [step() for step in steps]
            assert losses[0] == losses[1], losses
            ours, fused = alternate(*steps, options.rounds)
            print(f"{arch}, {dtype}: compiled {fused:.3f} s / block by block {ours:.3f} s = {fused / ours:.3f}")


if __name__ == "__main__":
    main()
