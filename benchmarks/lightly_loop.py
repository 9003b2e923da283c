"""Compare the whole pretraining loop with lightly's: ``python benchmarks/lightly_loop.py --lightly-python PYTHON``.

Alternates steps of SimSiam, from JPEG files to the optimizer: ``ssql_det.pretrain.pretrain`` itself, and the loop of
lightly's documentation with lightly's transform, data set, heads and loss, each in a process of its own with one thread
and no workers. ResNet-18, views of 64 pixels, batches of 32. ``PYTHON`` is the interpreter of an environment with
lightly 1.6 and the same torch. Times are CPU seconds, which other programs change little. Exit code 1 if there are
fewer than 1.1 times the images per second of lightly's loop, both in float32, or with AMP, for which the CPU needs
bfloat16 instructions, fewer than 1.7 times.

The augmentations have the same parts and probabilities. The blur differs: lightly's is Pillow's, of box filters; here
it is a Gaussian kernel of a tenth of the view's side. What lightly gains from channels last and bfloat16 is printed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import Child, answer, run_script

ROUNDS, CHUNK = 9, 4  # timed chunks of each loop, and the steps of a chunk
IMAGES, SIDE, BATCH, SIZE, WIDTH, HIDDEN = 256, 96, 32, 64, 2048, 512
NEXT_CHUNK = "the next chunk"  # what a loop is asked for
LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-4


def make_images(folder: Path) -> None:
    """JPEG files of drawn scenes, in one class folder."""
    import numpy as np
    from PIL import Image

    from ssql_det.toydata.digits import load_digit_split
    from ssql_det.toydata.scenes import make_scene

    folder.mkdir(parents=True)
    rng, digits = np.random.default_rng(0), load_digit_split("train")
    for index in range(IMAGES):
        Image.fromarray(make_scene(rng, digits, (SIDE, SIDE)).image).save(folder / f"{index:03}.jpg", quality=90)


def train_ours(images: Path, variant: str, on_step: Callable[[], None]) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from ssql_det.pretrain.config import read_config
    from ssql_det.pretrain.loop import pretrain

    config = f"""
        METHOD simsiam SIMSIAM.DIM {WIDTH} SIMSIAM.HIDDEN {HIDDEN} SSQL.ENABLED False
        BACKBONE resnet18 DEVICE cpu AMP {variant == "bfloat16"}
        DATA.RECIPE imagenet DATA.SIZE {SIZE} DATA.WORKERS 0
        OPTIM.BATCH {BATCH} OPTIM.LR {LR} OPTIM.MOMENTUM {MOMENTUM} OPTIM.WEIGHT_DECAY {WEIGHT_DECAY}
        OPTIM.EPOCHS 1000000 PERIODS.CHECKPOINT 1000000
    """
    paths = ["DATA.TRAIN", str(images), "OUTPUT_DIR", str(images.parent / variant)]
    register_optimizer_step_post_hook(lambda *_: on_step())
    pretrain(read_config(None, [*config.split(), *paths]))


def train_lightly(images: Path, variant: str, on_step: Callable[[], None]) -> None:
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
    from lightly.transforms import SimSiamTransform

    class SimSiam(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
            self.projection_head = SimSiamProjectionHead(512, WIDTH, WIDTH)
            self.prediction_head = SimSiamPredictionHead(WIDTH, HIDDEN, WIDTH)

        def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            projected = self.projection_head(self.backbone(views).flatten(start_dim=1))
            return projected.detach(), self.prediction_head(projected)

    torch.manual_seed(0)
    model = SimSiam()
    if variant != "float32":
        model.to(memory_format=torch.channels_last)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    dataset = LightlyDataset(str(images), transform=SimSiamTransform(input_size=SIZE))
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0)
    for _ in itertools.count():
        for (first_view, second_view), *_labels_and_names in loader:
            with torch.autocast("cpu", torch.bfloat16, variant == "bfloat16"):
                first_projected, first_predicted = model(first_view)
                second_projected, second_predicted = model(second_view)
                losses = criterion(first_projected, second_predicted), criterion(second_projected, first_predicted)
                loss = 0.5 * sum(losses)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            on_step()


def serve_loop(name: str, variant: str, images: str) -> None:
    """Run a loop of :data:`LOOPS`, which after each chunk of steps answers with its CPU seconds, and waits."""
    torch.set_num_threads(1)
    steps, start = itertools.count(1), time.process_time()

    def on_step() -> None:
        nonlocal start
        if next(steps) % CHUNK == 0:
            answer(time.process_time() - start)
            start = time.process_time()

    LOOPS[name](Path(images), variant, on_step)


def start_loop(python: str, name: str, images: Path, variant: str) -> Child:
    """A loop in a process of its own, after its first chunk of steps."""
    return Child(__file__, name, variant, str(images), python=python, OMP_NUM_THREADS="1")


LOOPS = {"ours": train_ours, "lightly": train_lightly}
# What is compared with lightly in float32, and the least ratio of images per second, or None.
COMPARISONS = (
    ("ours", "float32", 1.1),
    ("ours", "bfloat16", 1.7),
    ("lightly", "channels_last", None),
    ("lightly", "bfloat16", None),
)


def compare(lightly_python: str, images: Path) -> bool:
    """Print a line for each comparison; returns whether all are within their limits."""
    is_kept, baseline = [], start_loop(lightly_python, "lightly", images, "float32")
    for name, variant, limit in COMPARISONS:
        loop = start_loop(sys.executable if name == "ours" else lightly_python, name, images, variant)
        seconds = [[each.run(NEXT_CHUNK) for each in (baseline, loop)] for _ in range(1 + ROUNDS)]
        loop.close()
        rates = [
            BATCH * CHUNK / statistics.median(times) for times in zip(*seconds[1:], strict=True)
        ]  # the first one warms up
        ratio = rates[1] / rates[0]
        is_kept.append(limit is None or ratio >= limit)
        verdict = "" if limit is None else f" (limit {limit}, {'kept' if is_kept[-1] else 'MISSED'})"
        print(
            f"{name}, {variant}: {rates[1]:.1f} / {rates[0]:.1f} images per second = {ratio:.3f}{verdict}", flush=True
        )
    baseline.close()
    return all(is_kept)


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lightly-python", metavar="PYTHON", required=True, help="interpreter of an environment with lightly"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        make_images(images / "scenes")
        return compare(options.lightly_python, images)


if __name__ == "__main__":
    run_script(main, serve_loop)
