"""Compare a step of any-precision training with one of float training: ``python benchmarks/any_precision_step.py``.

Alternates steps of both on the CPU, with the toy detectors on random images, then counts the bytes that autograd saves
in each. Limits: 2.25 times the time, 1.7 times the bytes. Exit code 1 if one is exceeded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from support.saved_bytes import SavedBytes
from timing import alternate, report

from ssql_det.d2 import BitMasks, Boxes, EventStorage, Instances, build_optimizer, read_config
from ssql_det.detect import SSQL_DET_DEFAULTS
from ssql_det.detect.any_precision import AnyPrecisionStep
from ssql_det.detect.detector import build_detector
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.training_step import TrainingStep
from ssql_det.quant import SampledBits

CONFIGS = ("configs/detection/toy_voc_narrow_c4.yaml", "configs/detection/toy_coco_narrow_fpn.yaml")
ROUNDS, OBJECTS = 15, 4
TIME_LIMIT, BYTES_LIMIT = 2.25, 1.7


def make_step(file: str, is_quantized: bool) -> Callable[[], object]:
    """A step with the optimizer's; the weights and the images are the same in both."""
    cfg = read_config(file, ["MODEL.DEVICE", "cpu"], SSQL_DET_DEFAULTS)
    torch.manual_seed(0)
    model = build_detector(cfg).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(cfg, model)
    step = AnyPrecisionStep(model, QuantizedTraining(SampledBits(seed=0))) if is_quantized else TrainingStep()
    batch = [make_image(cfg.INPUT.MIN_SIZE_TRAIN[0]) for _ in range(cfg.SOLVER.IMS_PER_BATCH)]

    def run() -> None:
        optimizer.zero_grad()
        with EventStorage():
            step(model, [batch], iteration=0)
        optimizer.step()

    return run


def make_image(side: int) -> dict[str, object]:
    corners = torch.rand(OBJECTS, 2) * side / 2
    boxes = torch.cat((corners, corners + side / 4 + torch.rand(OBJECTS, 2) * side / 4), dim=1)
    masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    truth = {"gt_boxes": Boxes(boxes), "gt_classes": torch.arange(OBJECTS), "gt_masks": BitMasks(masks)}
    image = torch.randint(256, (3, side, side), dtype=torch.uint8)
    return {"image": image, "instances": Instances((side, side), **truth)}


def count_saved_bytes(step: Callable[[], object]) -> int:
    counter = SavedBytes()
    with counter.counting():
        step()
    return counter.most


def compare(file: str) -> bool:
    """Print the results of a detector; returns whether both are within their limits."""
    steps = [make_step(file, is_quantized) for is_quantized in (False, True)]
    is_kept = report(f"{file}: any-precision / float", *alternate(*steps, ROUNDS), TIME_LIMIT)
    float_bytes, quantized_bytes = map(count_saved_bytes, steps)
    ratio = quantized_bytes / float_bytes
    print(f"  saved bytes: {quantized_bytes} / {float_bytes} = {ratio:.3f} (limit {BYTES_LIMIT})", flush=True)
    return is_kept and ratio <= BYTES_LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    is_kept = [compare(file) for file in CONFIGS]
    raise SystemExit(not all(is_kept))


if __name__ == "__main__":
    main()
