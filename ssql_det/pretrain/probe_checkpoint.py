"""A probe at every bit-width: one frozen backbone, one calibration, one row each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from ssql_det.convert import IMAGENET, InputFormat
from ssql_det.convert.checkpoint import describe_branch
from ssql_det.core.devices import resolve_device
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Protocol as RowProtocol
from ssql_det.core.rows import Row, timestamp
from ssql_det.pretrain.checkpoint import PretrainedBackbone, read_backbone
from ssql_det.pretrain.classifiers import Protocol, Training, knn, linear, linear_of_views
from ssql_det.pretrain.data import CachedDataset, open_images
from ssql_det.pretrain.features import (
    MOST_BYTES,
    AugmentedImages,
    LabelledImages,
    anew,
    chosen,
    features,
    kept,
    labelled,
)
from ssql_det.quant import (
    Bits,
    Calibration,
    Quantization,
    Scheme,
    evaluate_at_width,
    parse_widths,
    profile_cost,
    quant_points,
)
from ssql_det.quant.scheme import RE_ESTIMATED
from ssql_det.ssl.augmentations import Augmentation, build_augmentation

_logger = logging.getLogger(__name__)
_TOGETHER = 64  # images in a batch that norms are estimated from


@dataclass(frozen=True)
class ProbeSettings:
    """What of a probe is not the backbone and the data. What has no default here has one in the command."""

    kinds: tuple[str, ...]
    seed: int
    device: str
    workers: int  # processes that make views
    calibration: int = Calibration().images  # the first of the images that are chosen
    scheme: Scheme = field(default_factory=Scheme)
    most: int | None = None
    size: int | None = None  # of the images, in pixels; the recipe's own if it is not given
    protocol: Protocol = field(default_factory=Protocol)
    method: str = ""  # how rows call it; as the checkpoint says if it is not given

    def __post_init__(self) -> None:
        if self.scheme.norms == RE_ESTIMATED and self.calibration < 2:
            raise UserError("norms=re-estimated needs two images or more: --calib-images 256")
        if self.protocol != Protocol() and "linear" not in self.kinds:
            raise UserError("a protocol, its epochs and batches are of the linear probe: ssql-det probe linear ...")


@dataclass(frozen=True)
class _Shown:
    """Images as they are shown to a backbone. Where a layer is trained on views that differ, ``seen`` may be few."""

    seen: LabelledImages
    asked: LabelledImages
    views: AugmentedImages | None

    @property
    def counts(self) -> dict[str, int]:
        train = self.seen.labels if self.views is None else self.views.labels
        return {"train_images": len(train), "val_images": len(self.asked.labels)}


def probe_checkpoint(
    checkpoint: str, data: str, bits: str, shown: str, plan: ProbeSettings, there: Sequence[Row] = ()
) -> Iterator[Row]:
    """A row for each of the bits; of ``there`` where one answers the same question.

    >>> for row in probe_checkpoint("ssql.pth", "toy/crops", "FP,4w4a,2w4a", "digits", ProbeSettings(("knn", "linear"), 0, "cuda", 4)):
    ...     print(row.bits, row.metrics)
    """
    widths = parse_widths(bits)
    pretrained = read_backbone(checkpoint)
    backbone, source = pretrained.backbone, pretrained.source
    _logger.info("%s: %s, %s", source.name, pretrained.network, describe_branch(pretrained.facts, source))
    backbone.module.eval().to(resolve_device(plan.device, "--device"))
    way = plan.protocol.shown(build_augmentation(shown or default_recipe(pretrained.network), plan.size))
    training = plan.protocol.training(way, backbone.width)
    images = _opened(data, way, backbone.width, plan)
    if plan.scheme.norms == RE_ESTIMATED and len(images.seen.labels) < 2:
        raise UserError(f"norms=re-estimated needs two images or more, and {data} has {len(images.seen.labels)}")
    linear = plan.protocol.described(training) if "linear" in plan.kinds else {}
    protocol = {"probes": list(plan.kinds), **linear, "recipe": way.name, "size": way.size, **images.counts}
    yield from _rows(pretrained, images, training, widths, plan, protocol, there)


def default_recipe(network: str) -> str:
    """The recipe of images that a network is for, by its name."""
    if network.startswith("cifar_"):
        return "cifar"
    return "digits" if network == "narrow_resnet" else "imagenet"


def _opened(data: str, way: Augmentation, width: int, plan: ProbeSettings) -> _Shown:
    train, test = (open_images(data, split) for split in ("train", "val"))
    order, views = chosen(train, plan.most, plan.seed), None
    enough = len(order)
    if plan.protocol.is_published:
        _require_room(plan.protocol.cached_views or 0, 4 * width * len(order))
        views = AugmentedImages(CachedDataset(train), order, way.image_transform, plan.seed, plan.workers)
        enough = enough if "knn" in plan.kinds else min(plan.calibration, enough)
    return _Shown(labelled(train, way, enough, plan.seed), labelled(test, way, plan.most, plan.seed), views)


def _require_room(views: int, size: int) -> None:
    if views * size > MOST_BYTES:
        fewer = f"ask for fewer, as --cached-views {MOST_BYTES // size}" if size <= MOST_BYTES else "leave them out"
        raise UserError(f"{views} cached views take {views * size / 2**30:.0f} GiB of memory; {fewer}")


def _rows(
    pretrained: PretrainedBackbone,
    shown: _Shown,
    training: Training,
    widths: Sequence[Bits],
    plan: ProbeSettings,
    protocol: RowProtocol,
    there: Sequence[Row],
) -> Iterator[Row]:
    backbone, facts = pretrained.backbone.module, pretrained.facts
    images = facts.input or IMAGENET
    calibration = list(shown.seen.first(plan.calibration).batches(images, _TOGETHER))
    points = quant_points(backbone, plan.scheme.placement, images.value_range)
    quantization = Quantization(backbone, points, plan.scheme)
    quantization.calibrate(calibration)
    profile = profile_cost(backbone, quantization.points, calibration[0][:1].to(next(backbone.parameters()).device))
    question = Row(
        method=plan.method or facts.method or "",
        checkpoint=pretrained.source.name,
        checkpoint_hash=pretrained.source.sha256,
        config="",
        dataset=shown.asked.name,
        bits="",
        scope="backbone",
        metrics={},
        seed=-1 if facts.seed is None else facts.seed,
        engine="",
        seconds=0.0,
        scheme=str(plan.scheme),
        calibration=Calibration(min(plan.calibration, len(shown.seen.labels)), plan.seed, shown.seen.name),
        network=pretrained.network,  # by which tables know their lines
        protocol=protocol,
        placement=plan.scheme.placement,
    )
    for width in widths:
        asked = replace(question, bits=str(width))
        answer = next((row for row in reversed(there) if _unanswered(row, asked) == asked), None)
        if answer is not None:
            _logger.info("%s is there already", width)
            yield answer
            continue
        start = time.perf_counter()
        accuracies = partial(_accuracies, backbone, images, shown, training, plan)
        metrics = evaluate_at_width(quantization, width, accuracies, batches=calibration)
        cost = profile.at(width)
        metrics |= {"MB": cost.bytes / 1e6, "GBOPs": cost.bit_ops / 1e9}
        yield replace(asked, metrics=metrics, seconds=round(time.perf_counter() - start, 2), time=timestamp())


def _unanswered(row: Row, asked: Row) -> Row:
    """Without what does not belong to the question."""
    return replace(row, metrics={}, seconds=0.0, time=asked.time, versions=asked.versions, schema=asked.schema)


def _accuracies(
    backbone: nn.Module, images: InputFormat, shown: _Shown, training: Training, plan: ProbeSettings
) -> dict[str, float]:
    """Of the backbone as it is at this moment."""
    known, other = (features(backbone, each.batches(images)) for each in (shown.seen, shown.asked))
    labels, truth, views = shown.seen.labels, shown.asked.labels, shown.views

    def layer() -> float:
        if views is None:
            return linear(known, labels, other, truth, training)
        count = min(plan.protocol.cached_views or 0, training.epochs)
        seen = kept(backbone, views, images, count) if count else anew(backbone, views, images)
        device = next(backbone.parameters()).device
        return linear_of_views(seen, views.labels, other, truth, training, plan.seed, device)

    ways = {"knn": lambda: knn(known, labels, other, truth), "linear": layer}
    return {f"{kind}/top1": ways[kind]() for kind in plan.kinds}
