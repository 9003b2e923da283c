"""kNN and linear probes of a checkpoint: its backbone is calibrated once and evaluated at each bit-width."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn

from ssql_det.convert import IMAGENET, InputFormat
from ssql_det.convert.checkpoint import describe_branch
from ssql_det.core.devices import AUTO, choose_memory_format, resolve_device
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
from ssql_det.quant.quantization_file import check_given_calibration, check_same_points
from ssql_det.quant.scheme import NORM_CORRECTION
from ssql_det.ssl.augmentations import Augmentation, build_augmentation

_logger = logging.getLogger(__name__)
CALIBRATION_BATCH_SIZE = 64  # images; re-estimated norm statistics are means over batches of this size


@dataclass(frozen=True)
class ProbeSettings:
    """What to evaluate, on how many images. ``ssql-det probe`` has defaults for the required fields."""

    kinds: tuple[str, ...]  # "knn", "linear" or both
    seed: int
    device: str
    workers: int  # processes that load augmented views
    num_calibration_images: int = Calibration().images  # the first training images in the order of the seed
    scheme: Scheme = field(default_factory=Scheme)
    max_images: int | None = None  # in each split; None: no limit
    image_size: int | None = None  # in pixels; None: the default size of the augmentation
    protocol: LinearProtocol = field(default_factory=LinearProtocol)
    memory_format: str = AUTO
    method_name: str = ""  # for the rows of results; "": the name in the checkpoint
    quantization_file: Path | None = None  # with this scheme; its calibration and repairs are used

    def __post_init__(self) -> None:
        if NORM_CORRECTION in self.scheme.repairs and self.num_calibration_images < 2:
            raise UserError(f"{self.scheme} needs --calib-images of at least 2")
        if self.protocol != LinearProtocol() and "linear" not in self.kinds:
            raise UserError(
                "--protocol, --epochs, --batch and --cached-views need the linear probe: ssql-det probe linear ..."
            )


@dataclass(frozen=True)
class _ProbeData:
    """``train`` is the gallery of kNN; its first images are used for calibration. The linear layer is trained on
    ``views`` (published protocol) or, if None, on ``train``."""

    train: LabelledImages
    test: LabelledImages
    views: AugmentedImages | None

    @property
    def num_images(self) -> dict[str, int]:
        train_labels = self.train.labels if self.views is None else self.views.labels
        return {"train_images": len(train_labels), "val_images": len(self.test.labels)}


def probe_checkpoint(
    checkpoint: str,
    data: str,
    bits: str,
    augmentation_name: str,
    settings: ProbeSettings,
    cached_rows: Sequence[Row] = (),
) -> Iterator[Row]:
    """One row of results for each bit-width; a row of ``cached_rows`` with the same settings is not measured again.

    ``augmentation_name`` "" means the network's default.
    """
    bit_widths = parse_bit_widths(bits)
    pretrained = read_backbone(checkpoint)
    backbone, checkpoint_file = pretrained.backbone, pretrained.source
    encoder_branch = describe_branch(pretrained.metadata, checkpoint_file)  # online or momentum encoder
    _logger.info("%s: %s, %s", checkpoint_file.name, pretrained.network, encoder_branch)
    device = resolve_device(settings.device, "--device")
    memory_format = choose_memory_format(settings.memory_format, device, "--memory-format")
    backbone.module.eval().to(device).to(memory_format=memory_format)
    augmentation = build_augmentation(
        augmentation_name or default_augmentation(pretrained.network), settings.image_size
    )
    augmentation = settings.protocol.adapt_augmentation(augmentation)  # the published one has its own crops and flips
    training = settings.protocol.build_training(augmentation, backbone.feature_dim)
    probe_data = _load_data(data, augmentation, backbone.feature_dim, settings)
    num_train = len(probe_data.train.labels)
    if NORM_CORRECTION in settings.scheme.repairs and num_train < 2:
        raise UserError(f"{settings.scheme} needs at least 2 training images; {data} has {num_train}")
    row_protocol = {
        "probes": list(settings.kinds),
        **(settings.protocol.to_row_fields(training) if "linear" in settings.kinds else {}),
        "recipe": augmentation.name,
        "size": augmentation.size,
        **probe_data.num_images,
    }
    yield from _probe_at_bit_widths(pretrained, probe_data, training, bit_widths, settings, row_protocol, cached_rows)


def default_augmentation(network: str) -> str:
    """The name of the augmentation that fits a network, given the network's name.

    >>> default_augmentation("cifar_resnet18"), default_augmentation("resnet50")
    ('cifar', 'imagenet')
    """
    if network.startswith("cifar_"):
        return "cifar"
    return "digits" if network == "narrow_resnet" else "imagenet"


def _load_data(data: str, augmentation: Augmentation, feature_dim: int, settings: ProbeSettings) -> _ProbeData:
    train, test = (open_images(data, split) for split in ("train", "val"))
    indices, views = choose_indices(train, settings.max_images, settings.seed), None
    num_train = len(indices)
    if settings.protocol.is_published:
        _check_cache_size(settings.protocol.cached_views or 0, 4 * feature_dim * len(indices))
        transform = augmentation.image_transform
        views = AugmentedImages(CachedDataset(train), indices, transform, settings.seed, settings.workers)
        # Without kNN only calibration uses images without augmentation.
        num_train = num_train if "knn" in settings.kinds else min(settings.num_calibration_images, num_train)
    return _ProbeData(
        load_labelled_images(train, augmentation, num_train, settings.seed),
        load_labelled_images(test, augmentation, settings.max_images, settings.seed),
        views,
    )


def _check_cache_size(num_views: int, bytes_per_epoch: int) -> None:
    """``bytes_per_epoch``: of the features of one view of each image."""
    if num_views * bytes_per_epoch > MAX_BYTES:
        max_views = MAX_BYTES // bytes_per_epoch
        advice = f"use at most --cached-views {max_views}" if max_views else "omit --cached-views"
        raise UserError(f"{num_views} cached views take {num_views * bytes_per_epoch / 2**30:.0f} GiB; {advice}")


def _probe_at_bit_widths(
    pretrained: PretrainedBackbone,
    data: _ProbeData,
    training: LinearTraining,
    bit_widths: Sequence[Bits],
    settings: ProbeSettings,
    protocol: RowProtocol,
    cached_rows: Sequence[Row],
) -> Iterator[Row]:
    backbone, metadata = pretrained.backbone.module, pretrained.metadata
    input_format = metadata.input or IMAGENET
    calibration_batches = list(
        data.train.take_first(settings.num_calibration_images).batches(input_format, CALIBRATION_BATCH_SIZE)
    )
    points = quant_points(backbone, settings.scheme.placement, input_format.value_range)
    calibration = Calibration(
        min(settings.num_calibration_images, len(data.train.labels)), settings.seed, data.train.name
    )
    if settings.quantization_file is None:
        quantization = Quantization(backbone, points, settings.scheme)
        quantization.calibrate(calibration_batches)
    else:
        quantization = Quantization.load(settings.quantization_file, backbone, settings.scheme)
        check_same_points(points, quantization.points, settings.quantization_file)
        calibration = check_given_calibration(settings.quantization_file, quantization.calibration)
        for bits in bit_widths:
            quantization.check_repairs(bits)
            if quantization.list_missing_repairs(bits):
                raise UserError(f"{settings.quantization_file} has no norms at {bits}; add them by `ssql-det quantize`")
    image = calibration_batches[0][:1].to(next(backbone.parameters()).device)
    profile = profile_cost(backbone, quantization.points, image)
    row_without_results = Row(
        method=settings.method_name or metadata.method or "",
        checkpoint=pretrained.source.name,
        checkpoint_hash=pretrained.source.sha256,
        config="",  # only detectors have one
        dataset=data.test.name,
        bits="",
        scope="backbone",
        metrics={},
        seed=-1 if metadata.seed is None else metadata.seed,  # of the pretraining; -1: unknown
        engine="",  # only detectors have one, detectron2 or minid2
        seconds=0.0,
        scheme=str(settings.scheme),
        calibration=calibration,
        network=pretrained.network,
        protocol=protocol,
        placement=settings.scheme.placement,
    )
    for bits in bit_widths:
        row = replace(row_without_results, bits=str(bits))
        measured = (each for each in reversed(cached_rows) if _has_results(each, settings.kinds))
        cached = next((each for each in measured if _clear_results(each, row) == row), None)
        if cached is not None:
            _logger.info("%s: already in the results, not measured again", bits)
            yield cached
            continue
        start = time.perf_counter()
        evaluate = partial(_evaluate, backbone, input_format, data, training, settings)
        metrics = evaluate_at_bit_width(quantization, bits, evaluate, batches=calibration_batches)
        cost = profile.at(bits)
        metrics |= {"MB": (cost.bytes + quantization.get_repair(bits).num_bytes) / 1e6, "GBOPs": cost.bit_ops / 1e9}
        yield replace(row, metrics=metrics, seconds=round(time.perf_counter() - start, 2), time=timestamp())


def _has_results(row: Row, kinds: Sequence[str]) -> bool:
    """Whether the row has all numbers of these probes; one that was edited may lack some."""
    return None not in map(row.metrics.get, (*(f"{kind}/top1" for kind in kinds), "MB", "GBOPs"))


def _clear_results(row: Row, template: Row) -> Row:
    """Clear the results of a row, and copy the time and versions of ``template``, so that rows compare by settings."""
    return replace(row, metrics={}, seconds=0.0, time=template.time, versions=template.versions, schema=template.schema)


def _evaluate(
    backbone: nn.Module, input_format: InputFormat, data: _ProbeData, training: LinearTraining, settings: ProbeSettings
) -> dict[str, float]:
    """The accuracy of each probe. The backbone is quantized by the caller, or float."""
    train_features = extract_features(backbone, data.train.batches(input_format))
    test_features = extract_features(backbone, data.test.batches(input_format))
    train_labels, test_labels = data.train.labels, data.test.labels

    def evaluate_linear() -> float:
        views = data.views
        if views is None:
            return linear_accuracy(train_features, train_labels, test_features, test_labels, training)
        num_cached = min(settings.protocol.cached_views or 0, training.epochs)
        if num_cached:
            view_features = cache_features(backbone, views, input_format, num_cached)
        else:
            view_features = stream_features(backbone, views, input_format)
        device = next(backbone.parameters()).device
        return linear_accuracy_on_views(
            view_features, views.labels, test_features, test_labels, training, settings.seed, device
        )

    probes = {
        "knn": lambda: knn_accuracy(train_features, train_labels, test_features, test_labels),
        "linear": evaluate_linear,
    }
    return {f"{kind}/top1": probes[kind]() for kind in settings.kinds}
