"""Analyze checkpoints at low bit-widths: loss terms, statistics of weights, t-SNE of features.

Loss terms are measured on pairs of views, augmented as in pretraining; activation ranges are observed in the float pass
over the same views, as in a step of SSQL. t-SNE uses test images without augmentation, and activation ranges of
training images, as in a probe. With ``norms=re-estimated`` norm statistics are estimated on the same images as the
ranges. Networks are in evaluation mode, and features are L2-normalized, as in cosine losses and kNN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.analyze.analysis import (
    BACKBONE,
    LOSS,
    Analysis,
    Embedding,
    LossTerms,
    TermsByBitWidth,
    compute_terms,
    measure_layers,
)
from ssql_det.analyze.tsne import tsne
from ssql_det.convert import IMAGENET, InputFormat
from ssql_det.core.console import track
from ssql_det.core.devices import resolve_device
from ssql_det.core.errors import UserError
from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME, PretrainedMethod, read_pretrained_method
from ssql_det.pretrain.data import ImageDataset, open_images
from ssql_det.pretrain.features import choose_indices, compute_spread, extract_features, load_labelled_images
from ssql_det.pretrain.probe_checkpoint import default_augmentation
from ssql_det.pretrain.view_loader import build_view_loader
from ssql_det.quant import (
    Bits,
    Calibration,
    Quantization,
    Scheme,
    evaluate_at_bit_width,
    evaluate_at_bit_widths,
    quant_points,
)
from ssql_det.quant.hooks import recording_outputs
from ssql_det.quant.norms import estimate_norm_statistics
from ssql_det.quant.points import PUBLISHED
from ssql_det.quant.repair import Repair
from ssql_det.quant.scheme import NO, RE_ESTIMATED
from ssql_det.report.display_names import slugify
from ssql_det.ssl import encoder_quant_points
from ssql_det.ssl.augmentations import Augmentation, build_augmentation, draw_random_numbers, normalize
from ssql_det.ssl.method import Views

_BATCH_SIZE = 64  # of views, and of calibration images
_MAX_TSNE_CLASSES = 10  # more could not be distinguished by their colours
_MIN_TSNE_IMAGES = 10


@dataclass(frozen=True)
class AnalysisSettings:
    """What to measure, on how many images. ``ssql-det analyze`` has defaults for the required fields."""

    bit_widths: tuple[Bits, ...]
    num_pairs: int  # pairs of views, one for each image
    num_tsne_images: int  # --points
    perplexity: float  # of t-SNE
    seed: int
    device: str
    num_calibration_images: int = Calibration().images
    scheme: Scheme = field(default_factory=Scheme)
    augmentation: str = ""  # a name for build_augmentation; "": the network's default augmentation
    image_size: int | None = None  # in pixels; None: the default size of the augmentation

    def __post_init__(self) -> None:
        if self.scheme.norms == RE_ESTIMATED and min(self.num_pairs, self.num_calibration_images) < 2:
            raise UserError("norms=re-estimated needs --pairs and --calib-images of at least 2")
        if self.scheme.placement != PUBLISHED:
            raise UserError(f"analyze does not support placement={self.scheme.placement}; use placement=published")
        if self.scheme.equalize != NO:
            raise UserError(f"analyze does not support equalize={self.scheme.equalize}; use equalize=no")


def name_checkpoints(paths: Sequence[str]) -> list[str]:
    """A unique name for each file: its file name, or for a file called ``checkpoint.pth`` the name of its folder.

    >>> name_checkpoints(["runs/ssql/checkpoint.pth", "moco_v2_800ep.pth.tar", "other/ssql/checkpoint.pth"])
    ['ssql', 'moco-v2-800ep', 'ssql-2']
    """
    names: list[str] = []
    for path in map(Path, paths):
        name = slugify(path.resolve().parent.name if path.name == CHECKPOINT_NAME else path.name.split(".")[0])
        candidates = (f"{name or 'checkpoint'}-{number}".removesuffix("-1") for number in itertools.count(1))
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return names


def analyze_checkpoints(paths: Sequence[str], data: str, settings: AnalysisSettings) -> Iterator[Analysis]:
    """Analyze each checkpoint. All files are read before the first is analyzed, so that invalid ones are reported at
    once."""
    methods = {name: read_pretrained_method(path) for name, path in zip(name_checkpoints(paths), paths, strict=True)}
    train, test = (open_images(data, split) for split in ("train", "val"))
    device = resolve_device(settings.device, "--device")
    for name, method in methods.items():
        for module in (method.encoder, method.predictor, method.target):
            module.to(device)
        yield _analyze(name, method, train, test, settings)


def _analyze(
    name: str, method: PretrainedMethod, train: ImageDataset, test: ImageDataset, settings: AnalysisSettings
) -> Analysis:
    pretrained, backbone = method.pretrained, method.encoder.backbone
    augmentation_name = settings.augmentation or default_augmentation(pretrained.network)
    augmentation = build_augmentation(augmentation_name, settings.image_size)
    input_format, device = pretrained.metadata.input or IMAGENET, next(backbone.parameters()).device
    embedding = embed_features(backbone, train, test, augmentation, input_format, settings)
    pair_batches = [
        [_renormalize(view, augmentation.input_format, input_format).to(device) for view in pair]
        for pair in make_view_pairs(test, augmentation, settings)
    ]
    return Analysis(
        name=name,
        file=pretrained.source.name,
        sha256=pretrained.source.sha256,
        method=pretrained.metadata.method or "",
        architecture=pretrained.network,
        protocol=f"{test.name}, {augmentation.name} at {augmentation.size} px, {settings.scheme}",
        pairs=sum(len(first) for first, _ in pair_batches),
        terms=measure_terms(method, pair_batches, settings.bit_widths, settings.scheme),
        layers=measure_layers(backbone, quant_points(backbone), settings.bit_widths, settings.scheme),
        embedding=embedding,
    )


def make_view_pairs(images: ImageDataset, augmentation: Augmentation, settings: AnalysisSettings) -> Iterator[Views]:
    """Batches of two views of ``settings.num_pairs`` images (all if there are fewer), augmented as in pretraining."""
    count = min(settings.num_pairs, len(images))
    batch = next(build_view_loader(images, augmentation.image_transform, count, settings.seed))
    if batch.bad_files:
        raise UserError(f"{batch.bad_files[0]} cannot be read; repair or remove it")
    # Batches of nearly equal size: BatchNorm statistics of a batch with a single image would have no variance.
    num_batches = -(-len(batch.positions) // _BATCH_SIZE)
    split_tensors = [each.tensor_split(num_batches) for each in (torch.tensor(batch.positions), *batch.views)]
    for positions, *views in zip(*split_tensors, strict=True):
        pair = []
        for view_index, view in enumerate(views):
            random_numbers = draw_random_numbers(settings.seed, positions, view_index, augmentation.num_random_numbers)
            pair.append(augmentation.batch_transform(view, random_numbers))
        yield pair


@torch.no_grad()
def measure_terms(
    method: PretrainedMethod, pair_batches: Sequence[Views], bit_widths: Sequence[Bits], scheme: Scheme
) -> tuple[TermsByBitWidth, ...]:
    """Loss terms of quantized features of each view, compared with float targets of the other view of its pair.

    Terms of the kind ``BACKBONE`` are of the backbone's features; their targets are features of the float backbone. If
    the checkpoint has heads, terms of the kind ``LOSS`` are of what the method's loss compares: the predictor's output,
    with targets of the float target encoder. The backbone is quantized to the bit-width; the projector's weights to 8
    bits, whenever weights are quantized at all; the predictor is float.
    """
    views = [view for batch in pair_batches for view in batch]  # first and second views of a batch in turn
    quantization = Quantization(method.encoder, encoder_quant_points(method.encoder), scheme)
    compute_features = partial(_compute_features, method, views)

    def compute_and_observe() -> dict[str, Tensor]:
        with quantization.observing():
            return compute_features()

    with _re_estimating(method.encoder, views, scheme):
        float_features = compute_and_observe()
    targets = {kind: features.flip(0) for kind, features in float_features.items()}  # flip(0) swaps the two views
    if method.has_heads:
        with _re_estimating(method.target, views, scheme):
            targets[LOSS] = _stack_normalized([method.target(view) for view in views]).flip(0)
    terms: dict[str, dict[Bits, LossTerms]] = {kind: {} for kind in float_features}
    for bits in track(bit_widths, "comparing features"):
        is_float = bits == Bits.FP
        quantized_features = (
            float_features if is_float else evaluate_at_bit_width(quantization, bits, compute_features, batches=views)
        )
        for kind in float_features:
            compared = (quantized_features[kind], float_features[kind], targets[kind])
            terms[kind][bits] = compute_terms(*(each.flatten(0, 1) for each in compared))
    return tuple(  # the spread is that of float features; near 0 they have collapsed, so all terms are small
        TermsByBitWidth(kind, compute_spread(features.flatten(0, 1)), terms[kind])
        for kind, features in float_features.items()
    )


def _re_estimating(network: nn.Module, views: Sequence[Tensor], scheme: Scheme) -> AbstractContextManager[None]:
    """With ``norms=re-estimated``, features of the float network are compared with re-estimated statistics, too."""
    statistics = estimate_norm_statistics(network, views) if scheme.norms == RE_ESTIMATED else {}
    return Repair(statistics).overriding_tensors(network)


def _compute_features(method: PretrainedMethod, views: Sequence[Tensor]) -> dict[str, Tensor]:
    """Features by kind, ``BACKBONE`` and, if the checkpoint has heads, ``LOSS``: see :func:`measure_terms`."""
    with recording_outputs(method.encoder, ["backbone"]) as backbone_features:
        predicted = [method.predictor(method.encoder(view)) for view in views]
    features = {BACKBONE: _stack_normalized(backbone_features)}
    return features | ({LOSS: _stack_normalized(predicted)} if method.has_heads else {})


def _stack_normalized(features: Sequence[Tensor]) -> Tensor:
    """Features of batches that alternate between first and second views, as [2, N, D], L2-normalized; in float64, so
    that ``quantization``, ``contrastive`` and ``cross`` of `LossTerms` sum to its ``total`` but for rounding."""
    stacked = torch.stack([torch.cat(list(features[view_index::2])) for view_index in (0, 1)])
    return F.normalize(stacked.double().cpu(), dim=2)


def embed_features(
    backbone: nn.Module,
    train: ImageDataset,
    test: ImageDataset,
    augmentation: Augmentation,
    input_format: InputFormat,
    settings: AnalysisSettings,
) -> Embedding:
    """t-SNE of the test images' features at all bit-widths together, so that coordinates can be compared across
    bit-widths."""
    calibration_images = load_labelled_images(train, augmentation, settings.num_calibration_images, settings.seed)
    calibration_batches = list(calibration_images.batches(input_format, _BATCH_SIZE))
    quantization = Quantization(backbone, scheme=settings.scheme)
    quantization.calibrate(calibration_batches)
    subset = _select_first_classes(test)
    images = load_labelled_images(subset, augmentation, settings.num_tsne_images, settings.seed)
    if len(images.labels) < _MIN_TSNE_IMAGES:
        raise UserError(
            f"t-SNE needs at least {_MIN_TSNE_IMAGES} images, got {len(images.labels)}; increase --points or add images"
        )

    def compute_normalized(bits: Bits) -> Tensor:
        return F.normalize(extract_features(backbone, images.batches(input_format)).double(), dim=1)

    features = dict(
        evaluate_at_bit_widths(quantization, settings.bit_widths, compute_normalized, batches=calibration_batches)
    )
    coordinates = tsne(torch.cat([*features.values()]), settings.perplexity, settings.seed).chunk(len(features))
    indices = choose_indices(subset, settings.num_tsne_images, settings.seed)
    files = tuple("/".join(Path(subset.file(index)).parts[-2:]) for index in indices)
    return Embedding(dict(zip(features, coordinates, strict=True)), files, images.labels, test.classes)


def _select_first_classes(images: ImageDataset) -> ImageDataset:
    """The images of the first `_MAX_TSNE_CLASSES` classes."""
    if images.labels is None:
        return images  # load_labelled_images raises the error
    indices = [index for index, label in enumerate(images.labels) if label < _MAX_TSNE_CLASSES]
    files, labels = tuple(images.files[index] for index in indices), tuple(images.labels[index] for index in indices)
    return replace(images, files=files, labels=labels, read=lambda index: images.read(indices[index]))


def _renormalize(views: Tensor, current: InputFormat, target: InputFormat) -> Tensor:
    """Convert views from the augmentation's input format to the format that the analyzed network was trained with."""
    if current == target:
        return views
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (current.mean, current.std))
    return normalize(views * std + mean, target)
