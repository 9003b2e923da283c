"""What SSQL costs beside the method that it wraps: ``python benchmarks/ssql_step.py``.

A training step of the CIFAR ResNet-18, 64 images, on the CPU: SSQL over SimSiam against SimSiam, in turns; and the peak
memory of each, in processes of their own. Of the time the algorithm's own floor is 2: two passes for one. Bar: 2.15.
Exit code 1 if it is missed. With ``--device cuda``: ResNet-50, 224 pixels, bfloat16, images a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from timing import alternate, forget_peak, memory, report

ROUNDS, BAR = 9, 2.15


def steps(arch: str, batch: int, side: int, hidden: int, device: str):
    """A training step of SimSiam, and one of SSQL over it, of networks that begin the same."""
    import torch

    from ssql_det.backbones import build_backbone
    from ssql_det.quant import SampledBits
    from ssql_det.ssl import SSQL, SimSiam

    def built(is_ssql: bool):
        torch.manual_seed(0)
        method = SimSiam(build_backbone(arch), hidden=hidden)
        network = (SSQL(method, SampledBits(seed=0)) if is_ssql else method).to(device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        views = [torch.randn(batch, 3, side, side, device=device) for _ in range(2)]
        done = []

        def step() -> None:
            with torch.autocast(device, torch.bfloat16, device == "cuda"):
                loss = network(views, len(done))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done.append(loss.item())

        return step

    return {"SimSiam": lambda: built(False), "SSQL": lambda: built(True)}


def peak(which: str) -> int:
    """Bytes that three steps need at most above the imports, in a process of its own."""
    said = subprocess.run([sys.executable, __file__, "--peak", which], check=True, capture_output=True, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        step = steps("cifar_resnet18", 64, 32, 2048, "cpu")[options.peak]()
        forget_peak()
        before = memory("VmRSS")
        for _ in range(3):
            step()
        print(memory("VmHWM") - before)
        return
    if options.device == "cuda":
        builders = steps("resnet50", 64, 224, 512, "cuda")
        plain, ssql = alternate(builders["SimSiam"](), builders["SSQL"](), ROUNDS)
        print(
            f"ResNet-50, 224 pixels, bfloat16, images a second: SimSiam {64 / plain:.0f}, SSQL {64 / ssql:.0f}; "
            f"SSQL / SimSiam {ssql / plain:.3f}"
        )
        return
    builders = steps("cifar_resnet18", 64, 32, 2048, "cpu")
    kept = report(
        "CIFAR ResNet-18, 64 images: SSQL / SimSiam", *alternate(builders["SimSiam"](), builders["SSQL"](), ROUNDS), BAR
    )
    print(f"peak memory above the imports: {peak('SSQL') / peak('SimSiam'):.2f}")
    raise SystemExit(not kept)


if __name__ == "__main__":
    main()
