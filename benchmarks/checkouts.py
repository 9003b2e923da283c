"""Compare the training steps of two checkouts: ``python benchmarks/checkouts.py /path/to/the/other``.

Alternates steps of a ResNet-50 (128 pixels, 16 images), of SimSiam and of SSQL, in float32 and in bfloat16, each
checkout in a process of its own, on random views. Prints the times of this checkout relative to the other's in float32;
exit code 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from timing import Child, alternate, report, run_script, serve

LIMITS = {  # of this checkout's step / the other's float32 step
    ("SimSiam", "float32"): 0.85,
    ("SSQL", "float32"): 0.85,
    ("SimSiam", "bfloat16"): 0.50,
    ("SSQL", "bfloat16"): 0.55,
}
STEP = "step"
CONFIG = {"BACKBONE": "resnet50", "DATA.TRAIN": "unused", "DATA.SIZE": 128, "OPTIM.BATCH": 16, "DEVICE": "cpu"}


def prepare(name: str, dtype: str) -> Callable[[], object]:
    """A training step with what this process's checkout has: memory format, optimizer, check of loss and gradients."""
    import torch

    from ssql_det.pretrain import config as configs
    from ssql_det.pretrain import loop, optim

    keys = CONFIG | {"SSQL.ENABLED": name == "SSQL", "AMP": dtype == "bfloat16"}
    config = configs.read_config(None, [str(each) for pair in keys.items() for each in pair])
    torch.manual_seed(0)
    network = configs.build_network(config)[0].train()
    if hasattr(config, "memory_format"):
        network.to(memory_format=loop.choose_memory_format(config.memory_format, torch.device("cpu"), ""))
    optimizer = optim.build_optimizer(config.optim, network)
    check_finite = getattr(loop, "_check_finite", lambda loss, network, step: loss.item())
    views = [torch.randn(config.optim.batch, 3, *2 * [config.data.augmentation.size]) for _ in range(2)]
    steps = iter(range(1 << 30))

    def take_step() -> None:
        step = next(steps)
        with torch.autocast("cpu", torch.bfloat16, config.amp):
            loss = network(views, step)
        optimizer.zero_grad()
        loss.backward()
        check_finite(loss, network, step)
        optimizer.step()

    return take_step


def serve_step(checkout: str, name: str, dtype: str, threads: str) -> None:
    """Serve a training step of a checkout."""
    sys.path.insert(0, checkout)
    import torch

    import ssql_det

    assert Path(ssql_det.__file__).is_relative_to(checkout), ssql_det.__file__
    torch.set_num_threads(int(threads))
    serve({STEP: prepare(name, dtype)})


def compare(name: str, dtype: str, other: Path, threads: int, rounds: int) -> bool:
    checkouts = ((other, "float32"), (Path(__file__).parents[1], dtype))
    children = [
        Child(__file__, os.fspath(checkout.resolve()), name, its_dtype, str(threads))
        for checkout, its_dtype in checkouts
    ]
    title = f"ResNet-50, 16 images of 128 pixels: {name} in {dtype} / {name} of {other} in float32"
    is_kept = report(title, *alternate(*(partial(child.run, STEP) for child in children), rounds), LIMITS[name, dtype])
    for child in children:
        child.close()
    return is_kept


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each (default: %(default)s)")
    options = parser.parse_args()
    is_kept = [compare(*case, options.other, options.threads, options.rounds) for case in LIMITS]
    return all(is_kept)


if __name__ == "__main__":
    run_script(main, serve_step)
