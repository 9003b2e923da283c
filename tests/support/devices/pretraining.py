"""Checks of pretraining on a device: steps of every method, views, the loader that makes them, bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from support.devices.comparison import CheckResult, total_relative_error, worst
from support.devices.targets import FLOAT64_ON_CPU, Target, each_memory_format
from support.pretrain.processes import take_steps
from support.small_methods import METHODS, compute_gradients, make_small_method, make_two_views
from torch import Tensor

from ssql_det.pretrain.data import ImageDataset
from ssql_det.pretrain.view_loader import build_augmented_view_loader, build_view_loader
from ssql_det.quant import Bits, FixedBits
from ssql_det.ssl import SSQL
from ssql_det.ssl.augmentations import SIZES, Augmentation, build_augmentation, draw_random_numbers

_STEP_LIMIT = 1e-9  # in float64, where rounding errors do not move a value to another integer
_FLOAT32_LIMIT = 0.01  # of a loss near 1, of which some quantized values have moved
_VIEW_LIMIT = 1e-3  # of normalized pixels, which lie between -3 and 3
_BFLOAT16_LIMIT = 0.03  # of a loss near 1
_SEED, _BATCH, _NUM_BATCHES = 5, 4, 5


def check_steps(device: torch.device) -> Iterator[CheckResult]:
    """Steps of each method, alone and under SSQL: losses, gradients, and what they leave behind; losses in float32."""
    cpu = torch.device("cpu")
    for kind, is_ssql in itertools.product(METHODS, (False, True)):
        title = f"{kind} {'under SSQL' if is_ssql else 'alone'}"
        expected = take_steps(kind, is_ssql, target=FLOAT64_ON_CPU)
        errors = [
            _compare_steps(take_steps(kind, is_ssql, target=target), expected)
            for target in each_memory_format(device, torch.float64)
        ]
        yield CheckResult(f"{title}, float64: losses, gradients and state", worst(errors), _STEP_LIMIT)
        (expected_loss,), _, _ = take_steps(kind, is_ssql, count=1, target=Target(cpu, torch.float32))
        losses = [
            take_steps(kind, is_ssql, count=1, target=target)[0][0]
            for target in each_memory_format(device, torch.float32)
        ]
        errors = [abs(float(loss) - float(expected_loss)) for loss in losses]
        yield CheckResult(f"{title}, float32: loss", worst(errors), _FLOAT32_LIMIT if is_ssql else 1e-4)


def check_bfloat16(device: torch.device) -> Iterator[CheckResult]:
    """The loss and the gradients of a step under autocast, against float32."""
    for kind, is_ssql in itertools.product(METHODS, (False, True)):
        for target in each_memory_format(device, torch.float32):
            (loss, gradients), (exact_loss, exact_gradients) = (
                _compute_step(kind, is_ssql, target, is_bfloat16) for is_bfloat16 in (True, False)
            )
            stored = "channels last" if target.memory_format == torch.channels_last else "contiguous"
            title = f"{kind} {'under SSQL' if is_ssql else 'alone'}, bfloat16, {stored}"
            yield CheckResult(f"{title}: loss", abs(float(loss - exact_loss)), _BFLOAT16_LIMIT)
            yield CheckResult(f"{title}: gradients", total_relative_error(gradients, exact_gradients), 1.0)


def check_views(device: torch.device) -> Iterator[CheckResult]:
    """Each augmentation of a batch on the device, against image by image on the CPU."""
    for name in SIZES:
        augmentation = build_augmentation(name, 48)
        images = _make_pixels(24)
        random_numbers = draw_random_numbers(_SEED, range(len(images)), 0, augmentation.num_random_numbers)
        expected = _augment_one_by_one(augmentation, images, random_numbers)
        errors = [
            _largest_difference(augmentation.batch_transform(layout.to(device), random_numbers), expected)
            for layout in (images, images.contiguous(memory_format=torch.channels_last))
        ]
        yield CheckResult(f"views, {name}", worst(errors), _VIEW_LIMIT)


def check_view_loader(device: torch.device) -> Iterator[CheckResult]:
    """Batches of the loader while the device is busy, against views made one after the other on the CPU.

    A GPU reads each batch long after the loop has gone on: if the memory of a view were reused too early, or read
    before the side stream has written it, the values would be others.
    """
    augmentation = build_augmentation("imagenet", 48)
    pixels = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in _make_pixels(11)]
    images = ImageDataset("random", ("",) * len(pixels), lambda index: Image.fromarray(pixels[index]))
    loader = build_augmented_view_loader(images, augmentation, _BATCH, _SEED, device)
    work = torch.randn([4096 if device.type == "cuda" else 8] * 2, device=device)
    batches = []
    for batch in itertools.islice(loader, _NUM_BATCHES):
        for _ in range(10):
            work = work @ work / len(work)
        batches.append(replace(batch, views=tuple(view.clone() for view in batch.views)))
    cropped = build_view_loader(images, augmentation.image_transform, _BATCH, _SEED)
    differences, misplaced = [], 0
    for batch, expected in zip(batches, cropped, strict=False):
        misplaced += batch.positions != expected.positions
        for view_index, (view, crops) in enumerate(zip(batch.views, expected.views, strict=True)):
            count = augmentation.num_random_numbers
            random_numbers = draw_random_numbers(_SEED, expected.positions, view_index, count)
            differences.append(_largest_difference(view, _augment_one_by_one(augmentation, crops, random_numbers)))
    yield CheckResult("view loader: views", worst(differences), _VIEW_LIMIT)
    yield CheckResult("view loader: batches with other images", misplaced, 0)


CHECKS = {
    "steps": check_steps,
    "bfloat16": check_bfloat16,
    "views": check_views,
    "view loader": check_view_loader,
}


def _compare_steps(found: tuple, expected: tuple) -> float:
    """The largest error of the losses, of the gradients of each step, and of the state."""
    losses, gradients, state = found
    expected_losses, expected_gradients, expected_state = expected
    errors = [abs(float(loss) - float(other)) for loss, other in zip(losses, expected_losses, strict=True)]
    errors += map(total_relative_error, gradients, expected_gradients)
    return worst([*errors, total_relative_error(state, expected_state)])


def _compute_step(kind: str, is_ssql: bool, target: Target, is_bfloat16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients. At 64 pixels: on the CPU torch leaves parts of a bfloat16 gradient unwritten where a
    conv sees a single pixel."""
    method = target.place(make_small_method(kind)).train()
    network = SSQL(method, FixedBits(Bits(8, 8))) if is_ssql else method
    views = [target.place_images(view) for view in make_two_views(images=16, side=64)]
    with torch.autocast(target.device.type, torch.bfloat16, is_bfloat16):
        loss = network(views, 0)
    return loss.detach(), compute_gradients(loss, method)


def _make_pixels(count: int) -> Tensor:
    """Smooth random images, uint8 [N, 3, 48, 48], one of them gray and one of a single colour."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    images = torch.nn.functional.interpolate(noise, size=(48, 48), mode="bilinear")
    images[1] = images[1, :1]
    images[2] = 0.5
    return (255 * images).round().to(torch.uint8)


def _augment_one_by_one(augmentation: Augmentation, images: Tensor, random_numbers: Tensor) -> Tensor:
    pairs = zip(images.split(1), random_numbers.split(1), strict=True)
    return torch.cat([augmentation.batch_transform(image, numbers) for image, numbers in pairs])


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected).abs().max())
