"""A preset and a user's choices as steps: data, pretraining, conversion, training, sweep, pictures.

Everything lies below one folder, each step in a folder of its own::

    OUT/data                         toy data
    OUT/pretrain/ssql-0              checkpoint.pth, metrics
    OUT/backbones/ssql-0             backbone.pkl, in Detectron2's format, compared with the checkpoint
    OUT/detectors/c4-ssql-0          model_final.pth, coverage.json
    OUT/sweeps/c4-ssql-0             results.jsonl
    OUT/pictures/c4-ssql-0           detections at all bit-widths side by side
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssql_det.core.config import read_config_file
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.report.filling import DATASETS
from ssql_det.report.names import published_name
from ssql_det.report.published import published_table
from ssql_det.reproduce.presets import Preset, Pretraining, Transfer
from ssql_det.reproduce.step import Step
from ssql_det.toydata.dataset import MANIFEST, Settings

_LEAST = {"scenes": 24, "crops": 400, "iterations": 4, "calibration": 4}  # of a budget however small
_KINDS = ("data", "pretrain", "convert", "train", "sweep", "predict")
_START = 0.1  # minutes that a process takes before it does anything


@dataclass(frozen=True)
class Choices:
    """What a user may say. ``checkpoints`` are files by method; ``budget`` is the share of toy data and training."""

    out: Path
    tables: tuple[int, ...] = tuple(DATASETS)
    methods: tuple[str, ...] = ()
    bits: str = ""
    seeds: int | None = None
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    budget: float = 1.0
    num_gpus: int = 1
    imagenet: Path = Path("datasets/imagenet")
    on_gpu: bool = False


@dataclass(frozen=True)
class Plan:
    """``left_out``: what a table has and this plan has not, with the reason."""

    preset: Preset
    out: Path
    tables: tuple[int, ...]
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]
    imagenet: Path
    on_gpu: bool

    @property
    def data(self) -> Path:
        """What ``DETECTRON2_DATASETS`` has to say."""
        return self.out / "data" if self.preset.data else data_sets()


def data_sets() -> Path:
    """Where the real data sets are."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def make_plan(preset: Preset, choices: Choices) -> Plan:
    """
    >>> [step.command for step in make_plan(preset("mini"), Choices(Path("runs/mini"))).steps]
    ['ssql-det make-toy-data runs/mini/data --scenes 1000 ...', ...]
    """
    if preset.data is None and choices.budget != 1:
        raise UserError("--budget is a share of toy data; published recipes are what they are, so leave it out")
    transfers = [each for each in preset.transfers if each.table in choices.tables]
    if preset.data is None and choices.checkpoints and len(transfers) > 1:
        raise UserError("a checkpoint is of one architecture; say which table it is for, as --table 6")
    wanted = [_printed(name, transfers) for name in choices.methods]
    files = {_printed(name, transfers): file for name, file in choices.checkpoints.items()}
    preset = dataclasses.replace(
        preset,
        data=preset.data and _scaled(preset.data, choices.budget),
        bits=choices.bits or preset.bits,
        seeds=preset.seeds if choices.seeds is None else choices.seeds,
    )
    builder = _Builder(preset, choices, files)
    left_out = []
    for transfer in transfers:
        for method in _methods(transfer):
            if wanted and method not in wanted:
                continue
            if method in transfer.methods or method in files:
                builder.add(transfer, method)
            else:
                given = f"--checkpoint {shlex.quote(f'{method}=FILE')}"
                left_out.append(f"{method} of Table {transfer.table}: no step makes its backbone; give it by {given}")
    if not builder.steps:
        raise UserError(f"there is nothing to do for {', '.join(wanted)}; give --checkpoint {wanted[0]!r}=FILE")
    # What others wait for first, and of that the longest: so no lane is empty while another works alone.
    steps = sorted(builder.steps.values(), key=lambda step: (_KINDS.index(step.kind), -step.minutes))
    return Plan(preset, choices.out, choices.tables, tuple(steps), tuple(left_out), choices.imagenet, choices.on_gpu)


class _Builder:
    """Adds the steps of one detector after the other; those that several need come once."""

    def __init__(self, preset: Preset, choices: Choices, files: Mapping[str, str]) -> None:
        self._preset, self._choices, self._files = preset, choices, files
        self._out = choices.out
        self.steps: dict[str, Step] = {}

    def add(self, transfer: Transfer, method: str) -> None:
        for seed in range(self._preset.seeds):
            backbone = self._backbone(transfer, method, seed)
            self._detector(transfer, method, seed, backbone)

    def _data(self) -> tuple[Path, ...]:
        """What a step reads of the toy data: their manifest names every file's hash."""
        data = self._preset.data
        if data is None:
            return ()
        folder = self._out / "data"
        arguments = ("make-toy-data", str(folder), *_as_options(data))
        megabytes = 0.008 * data.scenes * (data.most_side / 128) ** 2 + 0.004 * data.crops
        minutes = 0.0004 * data.scenes + 0.00002 * data.crops
        made = (folder / MANIFEST,)
        self._step("data", "data", arguments, folder, (), made, minutes, megabytes)
        return made

    def _backbone(self, transfer: Transfer, method: str, seed: int) -> Path | None:
        """The converted backbone's path, or nothing for random weights."""
        pretraining = transfer.methods.get(method)
        if method in self._files:
            name, source = _slug(method), Path(self._files[method]).expanduser()
        elif pretraining is None:
            return None
        else:
            name = f"{_prefix(self._preset, transfer)}{_slug(method)}-{seed if self._preset.pretrains_each_seed else 0}"
            source = self._pretrained(name, pretraining, seed)
        folder = self._out / "backbones" / name
        path = folder / "backbone.pkl"
        arguments = ("convert", str(source), str(path), "--to", "detectron2", "--verify", "--force")
        self._step(f"convert-{name}", "convert", arguments, folder, (source,), (path,), 0.15, 0.1 * transfer.megabytes)
        return path

    def _pretrained(self, name: str, pretraining: Pretraining, seed: int) -> Path:
        folder = self._out / "pretrain" / name
        path = folder / "checkpoint.pth"
        images = self._out / "data" / "crops" if self._preset.data else self._choices.imagenet
        seed = seed if self._preset.pretrains_each_seed else 0
        parts = {"DATA.TRAIN": images, "OUTPUT_DIR": folder, "SEED": seed}
        gpus = ("--num-gpus", str(self._choices.num_gpus)) if self._choices.num_gpus > 1 else ()
        arguments = ("pretrain", "--config-file", pretraining.config, *gpus, "--resume")
        arguments += (*pretraining.overrides, *_pairs(parts))
        minutes = pretraining.minutes * self._choices.budget / self._choices.num_gpus
        reads = (Path(pretraining.config), *self._data())
        self._step(f"pretrain-{name}", "pretrain", arguments, folder, reads, (path,), minutes, 10)
        return path

    def _detector(self, transfer: Transfer, method: str, seed: int, backbone: Path | None) -> None:
        """Trained, swept, and for the first seed drawn."""
        name = f"{transfer.name}-{_slug(method)}-{seed}"
        detector, sweep, pictures = (self._out / kind / name for kind in ("detectors", "sweeps", "pictures"))
        weights, ranges, rows = detector / "model_final.pth", sweep / "ranges.json", sweep / "results.jsonl"
        config, data = ("--config-file", transfer.config), (Path(transfer.config), *self._data())
        same = {"SSQL.METHOD": method.removesuffix(" (ours)"), **self._shortened(transfer)}
        trained = {"MODEL.WEIGHTS": backbone or "", **same, "SEED": seed, "OUTPUT_DIR": detector}
        self._step(
            *(f"train-{name}", "train", ("train-det", *config, "--resume", *_pairs(trained))),
            *(detector, (*data, *([backbone] if backbone else [])), (weights,)),
            *(transfer.minutes * self._choices.budget, transfer.megabytes),
        )
        calibration = str(max(round(transfer.calibration * self._choices.budget), _LEAST["calibration"]))
        swept = _pairs({"MODEL.WEIGHTS": weights, **same, "OUTPUT_DIR": sweep})
        arguments = ("sweep", *config, "--bits", self._preset.bits, "--calib-images", calibration, *swept)
        minutes = transfer.sweep_minutes * self._choices.budget
        self._step(f"sweep-{name}", "sweep", arguments, sweep, (*data, weights), (rows, ranges), minutes, 0.1)
        if seed == 0:
            images = list(self._images(transfer))
            drawn = ("predict", *config, "--bits", self._preset.bits, "--ranges", str(ranges), "--out", str(pictures))
            arguments = (*drawn, *_pairs({"MODEL.WEIGHTS": weights, **same}), *map(str, images))
            made = tuple(pictures / f"{image.stem}.png" for image in images)
            reads = (*data, weights, ranges)
            self._step(f"predict-{name}", "predict", arguments, pictures, reads, made, 0.2, 0.3)

    def _shortened(self, transfer: Transfer) -> dict[str, object]:
        """Fewer iterations for a smaller budget; a sweep says so too, for its rows' sake."""
        if self._choices.budget == 1:
            return {}
        iterations = int(read_config_file(transfer.config)["SOLVER.MAX_ITER"])
        return {"SOLVER.MAX_ITER": max(round(iterations * self._choices.budget), _LEAST["iterations"])}

    def _images(self, transfer: Transfer) -> Iterator[Path]:
        data = self._preset.data
        root = self._out / "data" if data else data_sets()
        numbers = (data.first_test_scene, data.first_test_scene + 1) if data else transfer.shown
        yield from (root / transfer.image.format(number) for number in numbers)

    def _step(
        self,
        name: str,
        kind: str,
        arguments: tuple[str, ...],
        folder: Path,
        reads: tuple[Path, ...],
        makes: tuple[Path, ...],
        minutes: float,
        megabytes: float,
    ) -> None:
        self.steps.setdefault(name, Step(name, kind, arguments, folder, reads, makes, minutes + _START, megabytes))


def _scaled(data: Settings, budget: float) -> Settings:
    counts = {name: max(round(getattr(data, name) * budget), _LEAST[name]) for name in ("scenes", "crops")}
    return dataclasses.replace(data, **counts)


def _as_options(data: Settings) -> tuple[str, ...]:
    """What of the settings is not the command's default."""
    plain = Settings()
    named = {"scenes": data.scenes, "crops": data.crops, "crop-size": data.crop_size, "difficulty": data.difficulty}
    options = [f"--{name} {value}" for name, value in named.items() if value != getattr(plain, name.replace("-", "_"))]
    if (data.least_side, data.most_side) != (plain.least_side, plain.most_side):
        options.append(f"--size {data.least_side} {data.most_side}")
    return tuple(" ".join(options).split())


def _pairs(values: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(part) for pair in values.items() for part in pair)


def _prefix(preset: Preset, transfer: Transfer) -> str:
    """Toy presets transfer one backbone to both detectors, the paper's has a ResNet for each."""
    return "" if preset.data else f"{transfer.name}-"


def _methods(transfer: Transfer) -> tuple[str, ...]:
    """Those of the published table, then what a preset has beside them."""
    return tuple(dict.fromkeys((*published_table(transfer.table).methods, *transfer.methods)))


def _printed(name: str, transfers: Sequence[Transfer]) -> str:
    known = list(dict.fromkeys(name for each in transfers for name in _methods(each)))
    printed = published_name(name, known)
    if printed is None:
        raise UserError(f"there is no method {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    return printed


def _slug(method: str) -> str:
    """
    >>> _slug("SSQL-200ep (ours)"), _slug("random init.")
    ('ssql-200ep', 'random-init')
    """
    return re.sub(r"[^a-z0-9]+", "-", method.removesuffix(" (ours)").lower()).strip("-")
