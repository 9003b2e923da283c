"""kNN and linear probes of a checkpoint: one frozen backbone, one calibration, a row of results for each bit-width."""

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
from ssql_det.pretrain.classifiers import (
    LinearProtocol,
    LinearTraining,
    knn_accuracy,
    linear_accuracy,
    linear_accuracy_on_views,
)
from ssql_det.pretrain.data import CachedDataset, open_images
from ssql_det.pretrain.features import (
    MAX_BYTES,
    AugmentedImages,
    LabelledImages,
    cache_features,
    choose_indices,
    extract_features,
    load_labelled_images,
    stream_features,
)
from ssql_det.quant import (
    Bits,
    Calibration,
    Quantization,
    Scheme,
    evaluate_at_bit_width,
    parse_bit_widths,
    profile_cost,
    quant_points,
)
from ssql_det.quant.scheme import RE_ESTIMATED
from ssql_det.ssl.augmentations import Augmentation, build_augmentation

_logger = logging.getLogger(__name__)
_CALIBRATION_BATCH = 64  # images; norm statistics are estimated over such batches


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe. Fields without a default have one in the command line."""

    kinds: tuple[str, ...]  # knn, linear
    seed: int
    device: str
    workers: int  # processes that load augmented views
    calibration: int = Calibration().images  # the first of the training images
    scheme: Scheme = field(default_factory=Scheme)
    max_images: int | None = None  # of each split; None: all
    size: int | None = None  # of the images, in pixels; None: the augmentation's own
    protocol: LinearProtocol = field(default_factory=LinearProtocol)
    method: str = ""  # the method's name in rows; "": the checkpoint's

    def __post_init__(self) -> None:
        if self.scheme.norms == RE_ESTIMATED and self.calibration < 2:
            raise UserError("norms=re-estimated needs two images or more; use --calib-images 256")
        if self.protocol != LinearProtocol() and "linear" not in self.kinds:
            raise UserError("--protocol, --epochs, --batch and --cached-views are for: ssql-det probe linear ...")


@dataclass(frozen=True)
class _ProbeData:
    """``train`` is the gallery of kNN and calibrates; with the published protocol ``views`` train the linear layer."""

    train: LabelledImages
    test: LabelledImages
    views: AugmentedImages | None

    @property
    def counts(self) -> dict[str, int]:
        train_labels = self.train.labels if self.views is None else self.views.labels
        return {"train_images": len(train_labels), "val_images": len(self.test.labels)}


def probe_checkpoint(
    checkpoint: str,
    data: str,
    bits: str,
    recipe: str,
    settings: ProbeSettings,
    cached_rows: Sequence[Row] = (),
) -> Iterator[Row]:
    """One row of results for each bit-width; a row of ``cached_rows`` with the same settings is returned as it is.

    ``recipe`` names the augmentation; "": that of the network.
    """
    widths = parse_bit_widths(bits)
    pretrained = read_backbone(checkpoint)
    backbone, source = pretrained.backbone, pretrained.source
    _logger.info("%s: %s, %s", source.name, pretrained.network, describe_branch(pretrained.metadata, source))
    backbone.module.eval().to(resolve_device(settings.device, "--device"))
    augmentation = build_augmentation(recipe or default_recipe(pretrained.network), settings.size)
    augmentation = settings.protocol.adapt_augmentation(augmentation)
    training = settings.protocol.build_training(augmentation, backbone.width)
    probe_data = _load_data(data, augmentation, backbone.width, settings)
    num_train = len(probe_data.train.labels)
    if settings.scheme.norms == RE_ESTIMATED and num_train < 2:
        raise UserError(f"norms=re-estimated needs two images or more; {data} has {num_train}")
    protocol = {
        "probes": list(settings.kinds),
        **(settings.protocol.to_row_fields(training) if "linear" in settings.kinds else {}),
        "recipe": augmentation.name,
        "size": augmentation.size,
        **probe_data.counts,
    }
    yield from _probe_widths(pretrained, probe_data, training, widths, settings, protocol, cached_rows)


def default_recipe(network: str) -> str:
    """The augmentation for a network, by its name.

    >>> default_recipe("cifar_resnet18"), default_recipe("resnet50")
    ('cifar', 'imagenet')
    """
    if network.startswith("cifar_"):
        return "cifar"
    return "digits" if network == "narrow_resnet" else "imagenet"


def _load_data(data: str, augmentation: Augmentation, feature_width: int, settings: ProbeSettings) -> _ProbeData:
    train, test = (open_images(data, split) for split in ("train", "val"))
    indices, views = choose_indices(train, settings.max_images, settings.seed), None
    num_train = len(indices)
    if settings.protocol.is_published:
        _check_cache_size(settings.protocol.cached_views or 0, 4 * feature_width * len(indices))
        transform = augmentation.image_transform
        views = AugmentedImages(CachedDataset(train), indices, transform, settings.seed, settings.workers)
        num_train = num_train if "knn" in settings.kinds else min(settings.calibration, num_train)
    return _ProbeData(
        load_labelled_images(train, augmentation, num_train, settings.seed),
        load_labelled_images(test, augmentation, settings.max_images, settings.seed),
        views,
    )


def _check_cache_size(num_views: int, bytes_per_view: int) -> None:
    if num_views * bytes_per_view > MAX_BYTES:
        fitting = MAX_BYTES // bytes_per_view
        advice = f"use --cached-views {fitting}" if fitting else "omit --cached-views"
        raise UserError(f"{num_views} cached views take {num_views * bytes_per_view / 2**30:.0f} GiB; {advice}")


def _probe_widths(
    pretrained: PretrainedBackbone,
    data: _ProbeData,
    training: LinearTraining,
    widths: Sequence[Bits],
    settings: ProbeSettings,
    protocol: RowProtocol,
    cached_rows: Sequence[Row],
) -> Iterator[Row]:
    backbone, metadata = pretrained.backbone.module, pretrained.metadata
    input = metadata.input or IMAGENET
    calibration = list(data.train.first(settings.calibration).batches(input, _CALIBRATION_BATCH))
    points = quant_points(backbone, settings.scheme.placement, input.value_range)
    quantization = Quantization(backbone, points, settings.scheme)
    quantization.calibrate(calibration)
    profile = profile_cost(backbone, quantization.points, calibration[0][:1].to(next(backbone.parameters()).device))
    row_without_results = Row(
        method=settings.method or metadata.method or "",
        checkpoint=pretrained.source.name,
        checkpoint_hash=pretrained.source.sha256,
        config="",
        dataset=data.test.name,
        bits="",
        scope="backbone",
        metrics={},
        seed=-1 if metadata.seed is None else metadata.seed,
        engine="",
        seconds=0.0,
        scheme=str(settings.scheme),
        calibration=Calibration(min(settings.calibration, len(data.train.labels)), settings.seed, data.train.name),
        network=pretrained.network,
        protocol=protocol,
        placement=settings.scheme.placement,
    )
    for width in widths:
        row = replace(row_without_results, bits=str(width))
        cached = next((each for each in reversed(cached_rows) if _remove_results(each, row) == row), None)
        if cached is not None:
            _logger.info("%s: already in the results, not measured again", width)
            yield cached
            continue
        start = time.perf_counter()
        evaluate = partial(_evaluate, backbone, input, data, training, settings)
        metrics = evaluate_at_bit_width(quantization, width, evaluate, batches=calibration)
        cost = profile.at(width)
        metrics |= {"MB": cost.bytes / 1e6, "GBOPs": cost.bit_ops / 1e9}
        yield replace(row, metrics=metrics, seconds=round(time.perf_counter() - start, 2), time=timestamp())


def _remove_results(row: Row, like: Row) -> Row:
    """The row without what does not identify a measurement."""
    return replace(row, metrics={}, seconds=0.0, time=like.time, versions=like.versions, schema=like.schema)


def _evaluate(
    backbone: nn.Module, input: InputFormat, data: _ProbeData, training: LinearTraining, settings: ProbeSettings
) -> dict[str, float]:
    """The accuracies of the backbone in its current mode, float or quantized."""
    train_features = extract_features(backbone, data.train.batches(input))
    test_features = extract_features(backbone, data.test.batches(input))
    train_labels, test_labels = data.train.labels, data.test.labels

    def evaluate_linear() -> float:
        views = data.views
        if views is None:
            return linear_accuracy(train_features, train_labels, test_features, test_labels, training)
        num_cached = min(settings.protocol.cached_views or 0, training.epochs)
        if num_cached:
            source = cache_features(backbone, views, input, num_cached)
        else:
            source = stream_features(backbone, views, input)
        device = next(backbone.parameters()).device
        return linear_accuracy_on_views(
            source, views.labels, test_features, test_labels, training, settings.seed, device
        )

    probes = {
        "knn": lambda: knn_accuracy(train_features, train_labels, test_features, test_labels),
        "linear": evaluate_linear,
    }
    return {f"{kind}/top1": probes[kind]() for kind in settings.kinds}
