"""What few bits do to a checkpoint: the terms of its loss, its weights, a map of its features.

======== ============================================================================================================
terms    of pairs of views, made as in pretraining; ranges are those of the float pass over them, as in a step of SSQL
map      of images as a probe sees them; ranges are those of training images, as in a probe
======== ============================================================================================================

Networks are in evaluation mode, and features have unit length, as in losses by cosine and in votes of neighbours.
Re-estimated norms have statistics of the same images as the ranges, at each width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.analyze.analysis import BACKBONE, LOSS, Analysis, Map, Terms, TermsAtBits, layer_weights, terms
from ssql_det.analyze.tsne import tsne
from ssql_det.convert import InputFormat
from ssql_det.core.console import track
from ssql_det.core.devices import resolve_device
from ssql_det.core.errors import UserError
from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME, PretrainedMethod, read_pretrained_method
from ssql_det.pretrain.classifiers import spread
from ssql_det.pretrain.data import ImageDataset, open_images
from ssql_det.pretrain.features import chosen, features, labelled
from ssql_det.pretrain.probe_checkpoint import default_recipe
from ssql_det.pretrain.view_loader import build_view_loader
from ssql_det.quant import Bits, Calibration, Quantization, Scheme, evaluate_at_width, evaluate_at_widths, quant_points
from ssql_det.quant.hooks import recording_outputs
from ssql_det.quant.norms import estimate_norm_statistics, overriding_statistics
from ssql_det.quant.points import PUBLISHED
from ssql_det.quant.scheme import RE_ESTIMATED
from ssql_det.report.display_names import slugify
from ssql_det.ssl import encoder_points
from ssql_det.ssl.augmentations import Augmentation, build_augmentation, draw_random_numbers, normalize
from ssql_det.ssl.method import Views

_TOGETHER = 64  # images
_CLASSES, _LEAST = 10, 10  # of a map: as many classes as can be told apart, and images


@dataclass(frozen=True)
class AnalysisSettings:
    """What of an analysis is neither a checkpoint nor the data. What has no default here has one in the command."""

    widths: tuple[Bits, ...]
    pairs: int
    points: int  # images of a map
    perplexity: float
    seed: int
    device: str
    calibration: int = Calibration().images
    scheme: Scheme = field(default_factory=Scheme)
    shown: str = ""  # the recipe; by the network if it is not given
    size: int | None = None

    def __post_init__(self) -> None:
        if self.scheme.norms == RE_ESTIMATED and min(self.pairs, self.calibration) < 2:
            raise UserError("norms=re-estimated needs two images or more: --pairs 512 --calib-images 256")
        if self.scheme.placement != PUBLISHED:
            raise UserError(f"projectors have no rules for placement={self.scheme.placement}; use a scheme without it")


def name_checkpoints(paths: Sequence[str]) -> list[str]:
    """A name for each: the file's, or the folder's for this project's own, which are all called alike; no name twice.

    >>> name_checkpoints(["runs/ssql/checkpoint.pth", "moco_v2_800ep.pth.tar", "other/ssql/checkpoint.pth"])
    ['ssql', 'moco-v2-800ep', 'ssql-2']
    """
    names: list[str] = []
    for path in map(Path, paths):
        name = slugify(path.resolve().parent.name if path.name == CHECKPOINT_NAME else path.name.split(".")[0])
        numbered = (f"{name or 'checkpoint'}-{number}".removesuffix("-1") for number in itertools.count(1))
        names.append(next(each for each in numbered if each not in names))
    return names


def analyze_checkpoints(paths: Sequence[str], data: str, plan: AnalysisSettings) -> Iterator[Analysis]:
    """All that is found of each checkpoint; all are read before the first is looked at.

    >>> plan = AnalysisSettings(tuple(parse_widths("FP,4,2w4a")), pairs=512, points=200, perplexity=30, seed=0, device="cuda")
    >>> found = list(analyze_checkpoints(["runs/ssql/checkpoint.pth"], "toy/crops", plan))
    """
    networks = {name: read_pretrained_method(path) for name, path in zip(name_checkpoints(paths), paths, strict=True)}
    seen, asked = (open_images(data, split) for split in ("train", "val"))
    device = resolve_device(plan.device, "--device")
    for name, trained in networks.items():
        for module in (trained.encoder, trained.predictor, trained.target):
            module.to(device)
        yield _analysis(name, trained, seen, asked, plan)


def _analysis(
    name: str, trained: PretrainedMethod, seen: ImageDataset, asked: ImageDataset, plan: AnalysisSettings
) -> Analysis:
    pretrained, backbone = trained.pretrained, trained.encoder.backbone
    way = build_augmentation(plan.shown or default_recipe(pretrained.network), plan.size)
    images, device = pretrained.facts.input or way.input, next(backbone.parameters()).device
    map = mapped(backbone, seen, asked, way, images, plan)
    views = [[_as_fed(view, way.input, images).to(device) for view in pair] for pair in pairs(asked, way, plan)]
    return Analysis(
        name=name,
        file=pretrained.source.name,
        sha256=pretrained.source.sha256,
        method=pretrained.facts.method or "",
        architecture=pretrained.network,
        shown=f"{asked.name}, {way.name} at {way.size} px, {plan.scheme}",
        pairs=sum(len(first) for first, _ in views),
        terms=terms_at_bits(trained, views, plan.widths, plan.scheme),
        weights=layer_weights(backbone, quant_points(backbone), plan.widths, plan.scheme),
        map=map,
    )


def pairs(images: ImageDataset, way: Augmentation, plan: AnalysisSettings) -> Iterator[Views]:
    """Two views each of as many images as the plan has pairs, or of all, made as in pretraining; by the seed."""
    batch = next(build_view_loader(images, way.image_transform, min(plan.pairs, len(images)), plan.seed))
    if batch.bad:
        raise UserError(f"{batch.bad[0]} cannot be read; mend it, or leave it out")
    count = -(-len(batch.positions) // _TOGETHER)  # even parts: one of a single image would have no variance
    parts = [each.tensor_split(count) for each in (torch.tensor(batch.positions), *batch.views)]
    for positions, *views in zip(*parts, strict=True):
        yield [
            way.batch_transform(view, draw_random_numbers(plan.seed, positions, number, way.num_random_numbers))
            for number, view in enumerate(views)
        ]


@torch.no_grad()
def terms_at_bits(
    trained: PretrainedMethod, views: Sequence[Views], widths: Sequence[Bits], scheme: Scheme
) -> tuple[TermsAtBits, ...]:
    """Those of the backbone's features, against those of the other view; then, where there are heads, those of what the
    loss compares. Both ways round."""
    every = [view for pair in views for view in pair]
    quantization = Quantization(trained.encoder, encoder_points(trained.encoder), scheme)
    features_now = partial(_features, trained, every)

    def observed() -> dict[str, Tensor]:
        with quantization.observing():
            return features_now()

    full = evaluate_at_width(quantization, Bits.FP, observed, batches=every)
    targets = {name: features.flip(0) for name, features in full.items()}
    if trained.has_heads:
        re_estimates = scheme.norms == RE_ESTIMATED
        statistics = estimate_norm_statistics(trained.target, every) if re_estimates else {}
        with overriding_statistics(trained.target, statistics):
            targets[LOSS] = _of_unit_length([trained.target(view) for view in every]).flip(0)
    found: dict[str, dict[Bits, Terms]] = {name: {} for name in full}
    compared = evaluate_at_widths(quantization, widths, lambda _: features_now(), batches=every)
    for width, low in track(compared, "comparing features", len(widths)):
        for name in full:
            found[name][width] = terms(*(each[name].flatten(0, 1) for each in (low, full, targets)))
    return tuple(TermsAtBits(name, spread(full[name].flatten(0, 1)), found[name]) for name in full)


def _features(trained: PretrainedMethod, views: Sequence[Tensor]) -> dict[str, Tensor]:
    with recording_outputs(trained.encoder, ["backbone"]) as pooled:
        compared = [trained.predictor(trained.encoder(view)) for view in views]
    found = {BACKBONE: _of_unit_length(pooled)}
    return found | ({LOSS: _of_unit_length(compared)} if trained.has_heads else {})


def _of_unit_length(features: Sequence[Tensor]) -> Tensor:
    """Of first views and of second ones, which come in turns: [2, N, D], in float64, so that sums are exact."""
    both = torch.stack([torch.cat(list(features[first::2])) for first in (0, 1)])
    return F.normalize(both.double().cpu(), dim=2)


def mapped(
    backbone: nn.Module,
    seen: ImageDataset,
    asked: ImageDataset,
    way: Augmentation,
    input: InputFormat,
    plan: AnalysisSettings,
) -> Map:
    """Of all widths together: so a point can be followed from one to the next."""
    calibration = list(labelled(seen, way, plan.calibration, plan.seed).batches(input, _TOGETHER))
    quantization = Quantization(backbone, scheme=plan.scheme)
    quantization.calibrate(calibration)
    few = _of_first_classes(asked)
    shown = labelled(few, way, plan.points, plan.seed)
    if len(shown.labels) < _LEAST:
        raise UserError(f"a map needs {_LEAST} images or more, got {len(shown.labels)}; raise --points or add images")

    def of_unit_length(bits: Bits) -> Tensor:
        return F.normalize(features(backbone, shown.batches(input)).double(), dim=1)

    found = dict(evaluate_at_widths(quantization, plan.widths, of_unit_length, batches=calibration))
    places = tsne(torch.cat([*found.values()]), plan.perplexity, plan.seed).chunk(len(found))
    files = tuple("/".join(Path(few.file(index)).parts[-2:]) for index in chosen(few, plan.points, plan.seed))
    return Map(dict(zip(found, places, strict=True)), files, shown.labels, asked.classes)


def _of_first_classes(images: ImageDataset) -> ImageDataset:
    if images.labels is None:
        return images
    kept = [index for index, label in enumerate(images.labels) if label < _CLASSES]
    files, labels = tuple(images.files[index] for index in kept), tuple(images.labels[index] for index in kept)
    return replace(images, files=files, labels=labels, read=lambda index: images.read(kept[index]))


def _as_fed(views: Tensor, given: InputFormat, wanted: InputFormat) -> Tensor:
    """Views that are normalized for one network as another takes them."""
    if given == wanted:
        return views
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (given.mean, given.std))
    return normalize(views * std + mean, wanted)
