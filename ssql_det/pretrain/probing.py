"""A probe at every bit-width: one frozen backbone, one calibration, one row each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import nn

from ssql_det.backbones import build_backbone
from ssql_det.convert import IMAGENET, Checkpoint, load_backbone, read
from ssql_det.core.devices import device_named
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Row
from ssql_det.pretrain.data import open_images
from ssql_det.pretrain.features import Labelled, features, labelled
from ssql_det.pretrain.probe import knn, linear
from ssql_det.quant import Bits, calibrate, parse_widths, profile_cost, quant_points, quantized, recalibrated
from ssql_det.ssl.views import recipe

_PROBES = {"knn": knn, "linear": linear}
_TOGETHER = 64  # images in a batch that norms are estimated from


@dataclass(frozen=True)
class Plan:
    """What of a probe is not the backbone and the data."""

    kinds: tuple[str, ...]
    calibration: int = 512
    recalibrate_bn: bool = False
    most: int | None = None
    seed: int = 0
    size: int | None = None  # of the images, in pixels; the recipe's own if it is not given
    device: str = "cuda"


def probed(checkpoint: str, data: str, bits: str, shown: str, plan: Plan) -> Iterator[Row]:
    """A row for each of the bits.

    >>> for row in probed("ssql.pth", "toy/crops", "FP,4w4a,2w4a", "digits", Plan(("knn", "linear"))):
    ...     print(row.bits, row.metrics)
    """
    widths = parse_widths(bits)
    if plan.recalibrate_bn and plan.calibration < 2:
        raise UserError("--recalibrate-bn needs two images or more: --calib-images 512")
    source = read(os.path.expanduser(checkpoint))
    backbone = build_backbone(source.architecture.name).module.eval()
    load_backbone(backbone, source)
    backbone.to(device_named(plan.device, "--device"))
    way = recipe(shown or _shown_to(source), plan.size)
    found = [open_images(data, split) for split in ("train", "val")]
    seen, asked = (labelled(images, way, plan.most, plan.seed) for images in found)
    if plan.recalibrate_bn and len(seen.labels) < 2:
        raise UserError(f"--recalibrate-bn needs two images or more, and {data} has {len(seen.labels)} to train on")
    how = (
        f"{source.architecture.name}; {', '.join(plan.kinds)}; "  # tables know their lines by the network's name
        f"{way.name} at {way.size} px, {len(seen.labels)} and {len(asked.labels)} images"
    )
    yield from _rows(source, backbone, seen, asked, widths, plan, how)


def _shown_to(source: Checkpoint) -> str:
    if source.architecture.is_cifar:
        return "cifar"
    return "digits" if source.architecture.name == "narrow_resnet" else "imagenet"


def _rows(
    source: Checkpoint,
    backbone: nn.Module,
    seen: Labelled,
    asked: Labelled,
    widths: Sequence[Bits],
    plan: Plan,
    how: str,
) -> Iterator[Row]:
    images = source.facts.input or IMAGENET
    points = quant_points(backbone)
    calibration = list(seen.first(plan.calibration).batches(images, _TOGETHER))
    ranges = calibrate(backbone, calibration, points)
    profile = profile_cost(backbone, points, calibration[0][:1].to(next(backbone.parameters()).device))
    for width in widths:
        start = time.perf_counter()
        norms = recalibrated(backbone, calibration) if plan.recalibrate_bn else nullcontext()
        with quantized(backbone, points, ranges, width), norms:
            known, other = (features(backbone, each.batches(images)) for each in (seen, asked))
        cost = profile.at(width)
        metrics = {f"{kind}/top1": _PROBES[kind](known, seen.labels, other, asked.labels) for kind in plan.kinds}
        metrics |= {"MB": cost.bytes / 1e6, "GBOPs": cost.bit_ops / 1e9}
        yield Row(
            method=source.facts.method or "",
            checkpoint=source.called,
            checkpoint_hash=source.source.sha256 if source.source else "",
            config=how,
            dataset=asked.name,
            bits=str(width),
            scope="backbone",
            calibration=_described(plan, seen),
            metrics=metrics,
            seed=-1 if source.facts.seed is None else source.facts.seed,
            engine="",
            seconds=round(time.perf_counter() - start, 2),
        )


def _described(plan: Plan, seen: Labelled) -> str:
    bn = ", BN recalibrated" if plan.recalibrate_bn else ""
    return f"{min(plan.calibration, len(seen.labels))} images of {seen.name}, seed {plan.seed}, MinMax{bn}"
