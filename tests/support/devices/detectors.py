"""Checks of detectors on a device: a training step and inference of minid2's models, also quantized and in bfloat16."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from support.devices.comparison import CheckResult, count_differences, relative_error, total_relative_error, worst
from support.devices.targets import FLOAT64_ON_CPU, Target, each_memory_format
from support.minid2.detectors import FEW, NORMED, build, full_config, inputs
from support.minid2.modules import SIZES, nms_of_doubles, seed_weights, small_config
from torch import Tensor, nn

from ssql_det.minid2.utils.events import EventStorage
from ssql_det.quant import Bits, Quantization

# The detectors, and the kind of masks that each is trained with. All have few channels but R18-C4.
_MASKS = {"R18-C4": None, "R50-C4": None, "Mask R50-FPN": "polygons"}
SMALL, REFERENCES = ("R50-C4", "Mask R50-FPN"), ("R18-C4", "Mask R50-FPN")
_STEP_LIMIT = 1e-5  # weights are float64, but boxes float32
_BOX_LIMIT = 1e-3  # pixels
_BFLOAT16_LIMIT = 0.25  # of the sum of the losses: other proposals may be kept


def check_training(device: torch.device, names: Sequence[str] = REFERENCES) -> Iterator[CheckResult]:
    """Losses and gradients of a step, in float and quantized."""
    for name in names:
        model = _build(name)
        for bits in (None, Bits(4, 4)):
            losses, gradients = _take_step(name, FLOAT64_ON_CPU.place(model), bits)
            errors = []
            for target in each_memory_format(device, torch.float64):
                found_losses, found_gradients = _take_step(name, target.place(model), bits)
                errors.append(total_relative_error(found_losses, losses))
                errors.append(total_relative_error(found_gradients, gradients))
            title = f"{name}, training step {'in float' if bits is None else f'at {bits}'}"
            yield CheckResult(f"{title}: losses and gradients", worst(errors), _STEP_LIMIT)


def check_inference(device: torch.device, names: Sequence[str] = REFERENCES) -> Iterator[CheckResult]:
    """Detections: the same number in the same order; classes, scores, boxes and masks."""
    for name in names:
        model = _build(name)
        expected = _detect(name, FLOAT64_ON_CPU.place(model))
        counts, scores, boxes, masks = [], [], [], []
        for target in each_memory_format(device, torch.float64):
            for found, reference in zip(_detect(name, target.place(model)), expected, strict=True):
                counts.append(count_differences(found["pred_classes"], reference["pred_classes"]))
                if len(found["scores"]) != len(reference["scores"]):
                    continue  # reported by the classes, whose shapes differ
                scores.append(relative_error(found["scores"], reference["scores"]))
                boxes.append(_largest_difference(found["pred_boxes"], reference["pred_boxes"]))
                if _MASKS[name]:
                    masks.append(float((found["pred_masks"].cpu() != reference["pred_masks"]).double().mean()))
        detections = sum(len(each["scores"]) for each in expected)
        yield CheckResult(f"{name}, {detections} detections: classes that differ", worst(counts), 0)
        yield CheckResult(f"{name}, detections: scores", worst([0.0, *scores]), _STEP_LIMIT)
        yield CheckResult(f"{name}, detections: boxes in pixels", worst([0.0, *boxes]), _BOX_LIMIT)
        if masks:
            yield CheckResult(f"{name}, detections: share of other mask pixels", worst(masks), 1e-3)


def check_bfloat16(device: torch.device, names: Sequence[str] = REFERENCES) -> Iterator[CheckResult]:
    """The sum of the losses under autocast, against float32."""
    for name in names:
        model = Target(device, torch.float32, torch.channels_last).place(_build(name))
        exact, rounded = (sum(_compute_losses(name, model, is_bfloat16).values()) for is_bfloat16 in (False, True))
        yield CheckResult(f"{name}, bfloat16: loss", abs((rounded / exact).item() - 1), _BFLOAT16_LIMIT)


CHECKS = {"training": check_training, "inference": check_inference, "bfloat16": check_bfloat16}


def _engine(package: str) -> Any:
    return importlib.import_module(f"ssql_det.minid2.{package}")


def _build(name: str) -> nn.Module:
    """A detector with seeded weights in float64."""
    if name == "R18-C4":
        cfg = full_config(_engine, name, "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10)
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12, 24, 48]]
    else:
        cfg = small_config(_engine, name.rpartition("-")[2])
    cfg.merge_from_list([*NORMED, *FEW])
    model: nn.Module = seed_weights(build(_engine, cfg))
    return model


def _take_step(name: str, model: nn.Module, bits: Bits | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses and all gradients; the ranges of a quantized step are observed in evaluation mode."""
    if bits is None:
        losses = _compute_losses(name, model)
    else:
        quantization = Quantization(model)
        with quantization.observing():
            _detect(name, model)
        with quantization.at(bits):
            losses = _compute_losses(name, model)
    trained = {path: parameter for path, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(sum(losses.values()), list(trained.values()))
    return losses, dict(zip(trained, found, strict=True))


def _compute_losses(name: str, model: nn.Module, is_bfloat16: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(9)
    device = next(model.parameters()).device.type
    autocast = torch.autocast(device, torch.bfloat16, is_bfloat16)
    with EventStorage(), nms_of_doubles(), _sampling_on_cpu(), autocast:
        losses: dict[str, Tensor] = model.train()(inputs(_engine, SIZES, _MASKS[name]))
    return losses


def _detect(name: str, model: nn.Module) -> list[dict[str, Tensor]]:
    with torch.no_grad(), nms_of_doubles():
        found = [each["instances"].get_fields() for each in model.eval()(inputs(_engine, SIZES, _MASKS[name]))]
    return [{**fields, "pred_boxes": fields["pred_boxes"].tensor} for fields in found]


@contextmanager
def _sampling_on_cpu() -> Iterator[None]:
    """Draw permutations with the CPU's generator, so that a device samples the same regions."""
    randperm = torch.randperm

    def draw(count: int, device: torch.device | None = None) -> Tensor:
        return randperm(count).to(device)

    with mock.patch("torch.randperm", draw):
        yield


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected).abs().max()) if len(expected) else 0.0
