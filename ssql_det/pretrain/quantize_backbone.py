"""Quantize a pretrained backbone for some bit-widths, with the repairs of a scheme: one file that probes can use."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ssql_det.convert import IMAGENET, InputFormat
from ssql_det.core.console import track
from ssql_det.core.devices import AUTO, choose_memory_format, resolve_device
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.pretrain.checkpoint import read_backbone
from ssql_det.pretrain.data import ImageDataset, open_images
from ssql_det.pretrain.features import choose_indices, load_transformed, split_evenly
from ssql_det.pretrain.probe_checkpoint import CALIBRATION_BATCH_SIZE, default_augmentation
from ssql_det.ptq import RepairData, RepairResult, check_role_images, find_backbone_blocks, quantize_network
from ssql_det.quant import Bits, Scheme, quant_points
from ssql_det.quant.forward import evaluating, forward_images, get_device
from ssql_det.ssl.augmentations import Augmentation, build_augmentation, normalize

_TUNING_BATCH_SIZE = 32  # images of a step of tuning
_logger = logging.getLogger(__name__)


def quantize_backbone(
    checkpoint: str,
    data: str,
    bit_widths: Sequence[Bits],
    scheme: Scheme,
    calibration: Calibration,
    path: Path,
    augmentation_name: str = "",
    image_size: int | None = None,
    device_name: str = "cuda",
    overrides: Mapping[str, Bits] | None = None,
) -> dict[Bits, RepairResult | None]:
    """Calibrate and repair the backbone, and save its quantization to ``path`` after each step.

    Return what was made of each bit-width, as :func:`ssql_det.ptq.quantize_network` does. The images are training
    images with the test transform: those for calibration are the first in the order of the seed, as for probes, those
    for reconstruction the next. ``augmentation_name`` "" and ``image_size`` ``None`` mean the network's defaults.
    """
    check_role_images(scheme, calibration)
    pretrained = read_backbone(checkpoint)
    _logger.info("%s: %s", pretrained.source.name, pretrained.network)
    input_format = pretrained.metadata.input or IMAGENET
    device = resolve_device(device_name, "--device")
    backbone = pretrained.backbone.module.eval().to(device)
    backbone.to(memory_format=choose_memory_format(AUTO, device, "--memory-format"))
    augmentation = build_augmentation(augmentation_name or default_augmentation(pretrained.network), image_size)
    images = open_images(data, "train")
    indices = _choose_role_indices(images, calibration)
    calibration_batches = [
        normalize(batch, input_format)
        for batch in split_evenly(_load(images, indices["calibration"], augmentation), CALIBRATION_BATCH_SIZE)
    ]

    def make_data() -> RepairData:
        pixels = _load(images, indices["reconstruction"] if scheme.learned_repairs else [], augmentation)
        return make_repair_data(backbone, calibration_batches, pixels, input_format)

    _, results = quantize_network(
        backbone,
        quant_points(backbone, scheme.placement, input_format.value_range),
        scheme,
        replace(calibration, data=images.name),
        bit_widths,
        path,
        calibrate=lambda quantization: quantization.calibrate(calibration_batches),
        make_data=make_data,
        overrides=overrides,
    )
    return results


def make_repair_data(
    backbone: nn.Module, calibration_batches: Sequence[Tensor], pixels: Tensor, input_format: InputFormat
) -> RepairData:
    """``pixels`` [N, 3, S, S], uint8, are the images for reconstruction."""
    tuning = [normalize(batch, input_format) for batch in split_evenly(pixels, _TUNING_BATCH_SIZE)]
    return RepairData(
        calibration=calibration_batches,
        reconstruction=[image for batch in tuning for image in batch.split(1)],
        tuning=tuning,
        forward=forward_images,
        blocks=find_backbone_blocks(backbone),
        make_loss=partial(FeatureLoss, backbone),
    )


class FeatureLoss:
    """The squared error of the pooled features of some batches, relative to the mean square of the float ones. Its
    targets are the features of the backbone, which must be float, at the construction."""

    def __init__(self, backbone: nn.Module, batches: Sequence[Tensor]) -> None:
        self._batches, self._device = batches, get_device(backbone)
        with evaluating(backbone), torch.no_grad():
            self._targets = [backbone(batch.to(self._device)) for batch in batches]

    def __call__(self, network: nn.Module, index: int) -> Tensor:
        """The loss of the network, as it is at the call, on the batch of an index."""
        features: Tensor = network(self._batches[index].to(self._device))
        target = self._targets[index]
        return (features - target).square().sum() / target.square().sum()


def _choose_role_indices(images: ImageDataset, calibration: Calibration) -> dict[str, list[int]]:
    counts = {
        "calibration": calibration.images,
        "reconstruction": calibration.reconstruction_images,
        "selection": calibration.selection_images,
    }
    if sum(counts.values()) > len(images):
        needed = ", ".join(f"{role} {count}" for role, count in counts.items())
        raise UserError(f"{images.name} has {len(images)} images, but the roles need more ({needed}); use fewer")
    order = choose_indices(images, seed=calibration.seed)
    ends = [sum([*counts.values()][: index + 1]) for index in range(len(counts))]
    return {role: order[end - count : end] for (role, count), end in zip(counts.items(), ends, strict=True)}


def _load(images: ImageDataset, indices: Sequence[int], augmentation: Augmentation) -> Tensor:
    """The images [N, 3, S, S], uint8."""
    if not indices:
        return torch.empty(0, 3, augmentation.size, augmentation.size, dtype=torch.uint8)
    tracked = track(indices, f"reading {images.name}")
    return torch.stack([load_transformed(images, index, augmentation.test_transform) for index in tracked])
