"""What five bit-widths cost beside one, and what an evaluation costs beside the engine's own.

    python benchmarks/sweep.py

A sweep of FP, 8, 6, 5 and 4 bits against one evaluation at full precision: 50 toy images, 10 to calibrate with, scope
all, loading and scoring included, in turns, for both toy detectors with seeded weights. Bars: 6 times its time, 1.3
times its peak memory. Then both reference detectors on images of 480x640, in the fast way against the engine's: bar
0.9. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from timing import alternate, forget_peak, memory, report

CONFIGS = Path(__file__).parents[1] / "configs" / "detection"
TOYS = ("toy_voc_narrow_c4.yaml", "toy_coco_narrow_fpn.yaml")
REFERENCES = ("voc_r18_c4.yaml", "coco_mask_r50_fpn.yaml")
IMAGES, CALIBRATION, ROUNDS = 50, 10, 7
TIME, MEMORY, FAST = 6.0, 1.3, 0.9


def seeded(name: str):
    """A config and its detector with seeded weights, on the CPU."""
    import torch

    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS
    from ssql_det.detect.detector import build_detector

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    cfg = read_config(CONFIGS / name, ["MODEL.DEVICE", "cpu"], SSQL_DET_DEFAULTS)
    return cfg, build_detector(cfg).eval()


def jobs(name: str, folder: Path):
    """The evaluation of one toy detector, and its sweep, which can say where its time goes."""
    import torch

    from ssql_det.convert import read_checkpoint
    from ssql_det.detect.evaluation import evaluate
    from ssql_det.detect.evaluation_data import build_evaluation_loader
    from ssql_det.detect.quantized_evaluation import QuantizationSettings
    from ssql_det.detect.sweep import sweep
    from ssql_det.quant import Calibration, parse_widths

    cfg, model = seeded(name)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    checkpoint, dataset = read_checkpoint(folder / "model.pth"), cfg.DATASETS.TEST[0]

    def evaluated() -> None:
        evaluate(model, build_evaluation_loader(cfg, dataset), dataset)

    widths, plan = parse_widths("FP,8,6,5,4"), QuantizationSettings("all", Calibration(CALIBRATION))

    def swept(says_where: bool = False) -> None:
        own = cfg.clone()
        own.defrost()
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as own.OUTPUT_DIR, clocked(model) as passes:
            rows = list(sweep(own, name, model, checkpoint, widths, plan))
        if says_where:
            seconds = ", ".join(f"{row.bits} {row.seconds}" for row in rows)
            total = time.perf_counter() - start
            print(f"  seconds: {seconds}; in all {total:.2f}, the network's share {sum(passes) / total:.0%}")

    return evaluated, swept


@contextmanager
def clocked(model):
    """The seconds of each pass of a network."""
    begun, seconds = [], []
    hooks = [
        model.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter())),
        model.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - begun[-1])),
    ]
    yield seconds
    for hook in hooks:
        hook.remove()


def ways(name: str):
    """Four images through a reference detector as the engine does it, and in the fast way, its preparation included."""
    import torch

    from ssql_det.detect.evaluation import fast_inference

    _, model = seeded(name)
    generator = torch.Generator().manual_seed(0)
    batches = [[{"image": torch.randint(0, 256, (3, 480, 640), generator=generator)}] for _ in range(4)]

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            model(batch)

    def fastly() -> None:
        with fast_inference(model):
            plain()

    return plain, fastly


def measure(name: str, which: str, folder: str) -> None:
    """In a child: the peak of memory of one job."""
    job = jobs(name, Path(folder))[which == "sweep"]
    forget_peak()
    job()
    print(json.dumps(memory("VmHWM")))


def peak(name: str, which: str, folder: str) -> int:
    """The same, asked for."""
    command = [sys.executable, __file__, name, which, folder]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

    kept = True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = str(make_toy_data(f"{folder}/toy", ToyDataSettings(4 * IMAGES, 100), 2))
        for name in TOYS:
            evaluated, swept = jobs(name, Path(folder))
            kept &= report(f"{name}: sweep / evaluation", *alternate(evaluated, swept, ROUNDS), TIME)
            swept(says_where=True)
            ratio = peak(name, "sweep", folder) / peak(name, "evaluation", folder)
            kept &= ratio <= MEMORY
            print(f"{name}: peak memory of the process {ratio:.2f} (bar {MEMORY})")
    for name in REFERENCES:
        kept &= report(f"{name}: fast / the engine's", *alternate(*ways(name), ROUNDS), FAST)
    raise SystemExit(not kept)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
