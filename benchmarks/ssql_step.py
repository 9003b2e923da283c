"""Compare SSQL with the method that it wraps: ``python benchmarks/ssql_step.py --method simsiam moco``.

Alternates training steps of the CIFAR ResNet-18 with 64 images on the CPU, of SSQL around a method and of the method
alone; then measures the peak memory of each in a process of its own. The lower bound of the time ratio is that of the
passes through the network alone: they are counted in a step of each, and the cost of a pass with backward relative to
one without is measured (counting operations it would be 3). Limit: 1.075 times the lower bound, in channels last 1.1,
in bfloat16 1.15 (both make the rest of a step faster than the quantizers). Exit code 1 if it is exceeded.

On a GPU: ``python benchmarks/gpu.py --only speed``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import torch
from timing import alternate, read_memory, report, reset_peak_memory

from ssql_det.backbones import build_backbone
from ssql_det.pretrain.ranks import backward_by_rank
from ssql_det.quant import SampledBits
from ssql_det.ssl import BYOL, SSQL, MoCo, SimCLR, SimSiam
from ssql_det.ssl.method import Encoder, Views

ROUNDS, IMAGES = 9, 64
VARIANTS = {  # memory format, type of autocast, limit of the time relative to the lower bound
    "contiguous": (torch.contiguous_format, torch.float32, 1.075),
    "channels_last": (torch.channels_last, torch.float32, 1.1),
    "bfloat16": (torch.channels_last, torch.bfloat16, 1.15),
}
METHODS = {
    "simsiam": lambda backbone, hidden: SimSiam(backbone, dim=2048, hidden=hidden),
    "byol": lambda backbone, hidden: BYOL(backbone, dim=512, hidden=hidden),
    "moco": lambda backbone, hidden: MoCo(backbone, dim=256, hidden=hidden, queue=4096),
    "simclr": lambda backbone, hidden: SimCLR(backbone, dim=256, hidden=hidden),
}
CPU = {"arch": "cifar_resnet18", "side": 32, "hidden": 2048}


class Step:
    """A training step of a method, alone or with SSQL; the initial weights are the same."""

    def __init__(
        self,
        method: str,
        is_ssql: bool,
        arch: str,
        side: int,
        hidden: int,
        images: int = IMAGES,
        device: str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        base = METHODS[method](build_backbone(arch), hidden)
        network = SSQL(base, SampledBits(seed=0)) if is_ssql else base
        self.network = network.to(device, memory_format=memory_format).train()
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=5e-4)
        views = [torch.randn(images, 3, side, side, device=device) for _ in range(2)]
        self.views = [view.contiguous(memory_format=memory_format) for view in views]
        self.title, self.device, self.dtype, self.step = base.title, device, dtype, 0

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        parts = [partial(self._compute_loss, part) for part in range(self.network.num_loss_parts)]
        loss = backward_by_rank(self.network, self.views, 1, parts)
        self.optimizer.step()
        loss.item()
        self.step += 1

    def _compute_loss(self, part: int, views: Views) -> torch.Tensor:
        with self.autocasting():
            return self.network(views, self.step, part)

    def autocasting(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, self.dtype == torch.bfloat16)

    def record_passes(self) -> list[bool]:
        """Take a step; returns for each pass through the network or its moving average whether it has gradients."""
        passes: list[bool] = []

        def record(encoder: Encoder, views: object, features: torch.Tensor) -> None:
            passes.append(features.requires_grad)

        encoders = [module for module in self.network.modules() if isinstance(module, Encoder)]
        hooks = [encoder.register_forward_hook(record) for encoder in encoders]
        self()
        for hook in hooks:
            hook.remove()
        return passes

    def measure_training_pass(self) -> float:
        """The time of a forward and a backward pass, relative to that of a forward pass without gradients."""
        encoder = next(module for module in self.network.modules() if isinstance(module, Encoder))

        def forward() -> None:
            with torch.no_grad(), self.autocasting():
                encoder(self.views[0])

        def train() -> None:
            with self.autocasting():
                features = encoder(self.views[0])
            features.float().square().mean().backward()

        forward_time, train_time = alternate(forward, train, ROUNDS)
        return train_time / forward_time


def compute_lower_bound(alone: Step, ssql: Step, training_pass: float) -> float:
    """The ratio of the times of their passes."""
    alone_time, ssql_time = (
        sum(training_pass if has_gradients else 1 for has_gradients in step.record_passes()) for step in (alone, ssql)
    )
    return ssql_time / alone_time


def compare_on_cpu(method: str, variant: str) -> bool:
    """Print the results of a method; returns whether it is within the limit."""
    memory_format, dtype, limit = VARIANTS[variant]
    alone, ssql = (Step(method, is_ssql, **CPU, memory_format=memory_format, dtype=dtype) for is_ssql in (False, True))
    training_pass = alone.measure_training_pass()
    lower_bound, by_operations = (compute_lower_bound(alone, ssql, each) for each in (training_pass, 3))
    print(
        f"{alone.title}: {describe(alone.record_passes())}; with SSQL {describe(ssql.record_passes())}; "
        f"a training pass takes {training_pass:.2f} times a forward pass"
    )
    name = (
        f"CIFAR ResNet-18, {IMAGES} images, {variant}: SSQL / {alone.title}, lower bound {lower_bound:.3f} "
        f"({by_operations:.2f} by operations)"
    )
    is_kept = report(name, *alternate(alone, ssql, ROUNDS), round(limit * lower_bound, 3))
    print(f"  peak memory above the imports: {run_child(method, 'ssql') / run_child(method, 'alone'):.2f}", flush=True)
    return is_kept


def describe(passes: Sequence[bool]) -> str:
    return f"{sum(passes)} training passes and {len(passes) - sum(passes)} forward-only"


def run_child(method: str, variant: str) -> int:
    """The peak memory of three steps above that of the imports, measured in a process of its own."""
    command = [sys.executable, __file__, "--method", method, "--peak", variant]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_peak_memory(method: str, variant: str) -> None:
    step = Step(method, variant == "ssql", **CPU)
    reset_peak_memory()
    before = read_memory("VmRSS")
    for _ in range(3):
        step()
    print(read_memory("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--peak", choices=("alone", "ssql"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak_memory(options.method[0], options.peak)
    else:
        torch.set_num_threads(options.threads)
        is_kept = [compare_on_cpu(method, variant) for method in options.method for variant in options.variant]
        raise SystemExit(not all(is_kept))


if __name__ == "__main__":
    main()
