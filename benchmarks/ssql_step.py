"""What SSQL costs beside the method that it wraps: ``python benchmarks/ssql_step.py --method simsiam moco``.

A training step of the CIFAR ResNet-18, 64 images, on the CPU: SSQL over a method against the method alone, in turns;
and the peak memory of each, in processes of their own. The floor of the time is what passes through the network alone
would cost: they are counted in a step of each, and what one with its backward pass costs beside one without is measured
(by operations it would be 3). Bar: 1.075 times the floor. Exit code 1 if one is missed. With ``--device cuda``:
ResNet-50, 224 pixels, bfloat16, images a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

import torch
from timing import alternate, forget_peak, memory, report

from ssql_det.backbones import build_backbone
from ssql_det.quant import SampledBits
from ssql_det.ssl import BYOL, SSQL, MoCo, SimCLR, SimSiam
from ssql_det.ssl.method import Encoder

ROUNDS, BAR, IMAGES = 9, 1.075, 64
METHODS = {
    "simsiam": lambda backbone, hidden: SimSiam(backbone, dim=2048, hidden=hidden),
    "byol": lambda backbone, hidden: BYOL(backbone, dim=512, hidden=hidden),
    "moco": lambda backbone, hidden: MoCo(backbone, dim=256, hidden=hidden, queue=4096),
    "simclr": lambda backbone, hidden: SimCLR(backbone, dim=256, hidden=hidden),
}
CPU = {"arch": "cifar_resnet18", "side": 32, "hidden": 2048, "device": "cpu"}
CUDA = {"arch": "resnet50", "side": 224, "hidden": 512, "device": "cuda"}


class Step:
    """A training step of a method, alone or under SSQL; both begin the same."""

    def __init__(self, method: str, is_ssql: bool, arch: str, side: int, hidden: int, device: str) -> None:
        torch.manual_seed(0)
        alone = METHODS[method](build_backbone(arch), hidden)
        self.network = (SSQL(alone, SampledBits(seed=0)) if is_ssql else alone).to(device).train()
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.views = [torch.randn(IMAGES, 3, side, side, device=device) for _ in range(2)]
        self.title, self.device, self.done = alone.title, device, 0

    def __call__(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, self.device == "cuda"):
            loss = self.network(self.views, self.done)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
        self.done += 1

    def passes(self) -> list[bool]:
        """Through the network and its moving average, of a step that is taken for it: which are trained."""
        found: list[bool] = []

        def count(encoder: Encoder, views: object, features: torch.Tensor) -> None:
            found.append(features.requires_grad)

        encoders = [module for module in self.network.modules() if isinstance(module, Encoder)]
        hooks = [encoder.register_forward_hook(count) for encoder in encoders]
        self()
        for hook in hooks:
            hook.remove()
        return found

    def trained_pass(self) -> float:
        """What a pass with its backward pass costs, as a number of passes without."""
        encoder = next(module for module in self.network.modules() if isinstance(module, Encoder))

        def forward() -> None:
            with torch.no_grad():
                encoder(self.views[0])

        def trained() -> None:
            encoder(self.views[0]).square().mean().backward()

        once, whole = alternate(forward, trained, ROUNDS)
        return whole / once


def floor_of(alone: Step, ssql: Step, trained_pass: float) -> float:
    """The ratio of what their passes cost."""
    base, wrapped = (sum(trained_pass if each else 1 for each in step.passes()) for step in (alone, ssql))
    return wrapped / base


def compared_on_cpu(method: str) -> bool:
    """Print a method's lines; whether it keeps the bar."""
    alone, ssql = (Step(method, is_ssql, **CPU) for is_ssql in (False, True))
    price = alone.trained_pass()
    floor, by_operations = (floor_of(alone, ssql, each) for each in (price, 3))
    print(f"{alone.title}: {told(alone.passes())}; under SSQL {told(ssql.passes())}; a trained pass costs {price:.2f}")
    what = (
        f"CIFAR ResNet-18, {IMAGES} images: SSQL / {alone.title}, floor {floor:.3f} ({by_operations:.2f} by operations)"
    )
    kept = report(what, *alternate(alone, ssql, ROUNDS), round(BAR * floor, 3))
    print(f"  peak memory above the imports: {peak(method, 'ssql') / peak(method, 'alone'):.2f}", flush=True)
    return kept


def compared_on_cuda(method: str) -> None:
    alone, ssql = (Step(method, is_ssql, **CUDA) for is_ssql in (False, True))
    floor = floor_of(alone, ssql, alone.trained_pass())
    before, after = alternate(alone, ssql, ROUNDS)
    print(
        f"ResNet-50, 224 pixels, bfloat16, images a second: {alone.title} {IMAGES / before:.0f}, "
        f"SSQL {IMAGES / after:.0f}; SSQL / {alone.title} {after / before:.3f}, whose floor is {floor:.3g}"
    )


def told(passes: Sequence[bool]) -> str:
    return f"{sum(passes)} trained passes and {len(passes) - sum(passes)} forward"


def peak(method: str, which: str) -> int:
    """Bytes that three steps need at most above the imports, in a process of its own."""
    command = [sys.executable, __file__, "--method", method, "--peak", which]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_peak(method: str, which: str) -> None:
    step = Step(method, which == "ssql", **CPU)
    forget_peak()
    before = memory("VmRSS")
    for _ in range(3):
        step()
    print(memory("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak", choices=("alone", "ssql"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.method[0], options.peak)
    elif options.device == "cuda":
        for method in options.method:
            compared_on_cuda(method)
    else:
        kept = [compared_on_cpu(method) for method in options.method]
        raise SystemExit(not all(kept))


if __name__ == "__main__":
    main()
