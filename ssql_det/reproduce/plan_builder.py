"""The steps behind a table's rows: data, pretraining, conversion, training, sweep, pictures, or data, pretraining,
probe; each a single command.

Everything lies below one folder, each step in a folder of its own::

    OUT/data                         toy data
    OUT/pretrain/ssql-0              checkpoint.pth, metrics
    OUT/backbones/ssql-0             backbone.pkl, in Detectron2's format, compared with the checkpoint
    OUT/detectors/c4-ssql-0          model_final.pth, coverage.json
    OUT/sweeps/c4-ssql-0             results.jsonl
    OUT/pictures/c4-ssql-0           detections at all bit-widths side by side
    OUT/probes/ssql-0                results.jsonl

and one for all that was pretrained on toy data with the first seed::

    OUT/analysis                     terms.csv, maps of features, a page of its own
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ssql_det.core.config import read_config_file
from ssql_det.report.display_names import slugify, strip_ours
from ssql_det.reproduce.experiments import DetectorExperiment, Experiment, Pretraining, ProbeExperiment
from ssql_det.reproduce.presets import MINIMUMS, Options, Preset, count_seeds, get_datasets_root
from ssql_det.reproduce.step_cache import Step
from ssql_det.toydata.dataset import MANIFEST, ToyDataSettings

_ANALYZED = "FP,8,4,2w4a"
_IMAGES = ("--calib-images", "512")  # of backbones, as the figures on the pages were measured
_START = 0.1  # minutes that a process takes before it does anything


class PlanBuilder:
    """Adds the steps of one part and method after the other; those that several need come once.

    ``rows_of``: by the name of a part, the steps that make its rows.
    """

    def __init__(self, preset: Preset, choices: Options, files: Mapping[str, str]) -> None:
        self._preset, self._choices, self._files = preset, choices, files
        self._out = choices.out
        self.steps: dict[str, Step] = {}
        self.rows_of: dict[str, list[str]] = {}

    def add(self, part: Experiment, method: str) -> None:
        names = self.rows_of.setdefault(part.name, [])
        for seed in range(count_seeds(part, self._preset, self._choices)):
            if isinstance(part, DetectorExperiment):
                names.append(self._detector(part, method, seed))
            elif isinstance(part, ProbeExperiment) and (seed == 0 or part.among(method, self._files) is None):
                names.append(self._probed(part, method, seed))

    def analyze(self) -> None:
        """What few bits do to the networks that are pretrained on toy data, those of the first seed side by side."""
        runs = [step for step in self.steps.values() if step.kind == "pretrain" and step.folder.name.endswith("-0")]
        if self._preset.data is None or not runs:
            return
        folder = self._out / "analysis"
        checkpoints = tuple(step.makes[0] for step in runs)
        maps = (folder / f"tsne_{step.folder.name}.png" for step in runs)
        arguments = ("analyze", "--checkpoints", *map(str, checkpoints), "--data", str(self._out / "data" / "crops"))
        arguments += ("--bits", _ANALYZED, "--pairs", "256", "--points", "100", *_IMAGES, "--out", str(folder))
        reads, makes = (*checkpoints, *self._data()), (folder / "terms.csv", *maps)
        self._add(Step("analyze", "analyze", arguments, folder, reads, makes, 0.05 * len(runs), 1))

    def _data(self) -> tuple[Path, ...]:
        """What a step reads of the toy data: their manifest names every file's hash."""
        data = self._preset.data
        if data is None:
            return ()
        folder = self._out / "data"
        arguments = ("make-toy-data", str(folder), *_as_options(data))
        minutes = (0.05 * data.scenes + 0.006 * data.crops) / 1000
        made = (folder / MANIFEST,)
        self._add(Step("data", "data", arguments, folder, (), made, minutes, data.megabytes))
        return made

    def _source(self, part: Experiment, method: str, seed: int) -> tuple[Path, str] | None:
        """A backbone's file, given or pretrained, and a name for what is made of it; nothing for random weights."""
        given, pretraining = part.among(method, self._files), part.methods.get(method)
        if given is not None:
            return Path(os.path.expanduser(self._files[given])), slugify(strip_ours(given))
        if pretraining is None:
            return None
        path = self._pretrained(pretraining, seed)
        return path, path.parent.name

    def _backbone(self, transfer: DetectorExperiment, method: str, seed: int) -> Path | None:
        """The converted backbone's path, or nothing for random weights."""
        found = self._source(transfer, method, seed if self._preset.pretrains_each_seed else 0)
        if found is None:
            return None
        source, name = found
        folder = self._out / "backbones" / name
        path = folder / "backbone.pkl"
        arguments = ("convert", str(source), str(path), "--to", "detectron2", "--verify", "--force")
        megabytes = 0.1 * transfer.megabytes
        self._add(Step(f"convert-{name}", "convert", arguments, folder, (source,), (path,), 0.05, megabytes))
        return path

    def _pretrained(self, pretraining: Pretraining, seed: int) -> Path:
        name = f"{pretraining.name}-{seed}"
        folder = self._out / "pretrain" / name
        path = folder / "checkpoint.pth"
        parts = {"DATA.TRAIN": self._images(pretraining.data), "OUTPUT_DIR": folder, "SEED": seed}
        arguments = ("pretrain", "--config-file", pretraining.config, *self._gpus(), "--resume")
        arguments += (*pretraining.overrides, *_pairs(parts))
        minutes, size = self._on_gpus(pretraining.minutes), pretraining.megabytes
        reads = (Path(pretraining.config), *self._data())
        self._add(Step(f"pretrain-{name}", "pretrain", arguments, folder, reads, (path,), minutes, size))
        return path

    def _images(self, data: str) -> str:
        """What backbones are pretrained on and probed with."""
        return str(self._out / "data" / "crops") if self._preset.data else self._choices.images(data)

    def _probed(self, probing: ProbeExperiment, method: str, seed: int) -> str:
        """The step that makes its rows; tables that have one backbone in common share it, so letters are told only
        where they alone say which it is."""
        found, given = self._source(probing, method, seed), probing.among(method, self._files)
        assert found is not None, f"{method} has random weights, which nothing probes"
        source, name = found
        folder = self._out / "probes" / name
        rows = folder / "results.jsonl"
        bits = ("--bits", self._choices.bits or probing.bits)
        arguments = ("probe", *probing.arguments, *_IMAGES, "--resume", "--checkpoint", str(source))
        arguments += ("--data", self._images(probing.data), *bits, "--out", str(rows))
        if given is not None or (method.startswith("(") and method not in probing.meaning):
            arguments += ("--method", strip_ours(given or method))
        reads, minutes = (source, *self._data()), probing.minutes * self._choices.budget
        return self._add(Step(f"probe-{name}", "probe", arguments, folder, reads, (rows,), minutes, 0.1))

    def _gpus(self) -> tuple[str, ...]:
        return ("--num-gpus", str(self._choices.num_gpus)) if self._choices.num_gpus > 1 else ()

    def _on_gpus(self, minutes: float) -> float:
        """How long what takes so many of them takes here."""
        return minutes * self._choices.budget / self._choices.num_gpus

    def _detector(self, transfer: DetectorExperiment, method: str, seed: int) -> str:
        """Trained, swept, and for the first seed drawn; the step that makes its rows."""
        backbone, plain = self._backbone(transfer, method, seed), strip_ours(method)
        name = f"{transfer.name}-{slugify(plain)}-{seed}"
        detector, sweep, pictures = (self._out / kind / name for kind in ("detectors", "sweeps", "pictures"))
        weights, quantization = detector / "model_final.pth", sweep / "quantization.safetensors"
        config, reads = ("--config-file", transfer.config), (Path(transfer.config), *self._data())
        same = {"SSQL_DET.METHOD": plain, **self._shortened(transfer)}

        trained = {"MODEL.WEIGHTS": backbone or "", **same, "SEED": seed, "OUTPUT_DIR": detector}
        arguments = ("train-det", *config, *self._gpus(), "--resume", *_pairs(trained))
        minutes, size = self._on_gpus(transfer.minutes), transfer.megabytes
        begins_with = (*reads, *([backbone] if backbone else []))
        self._add(Step(f"train-{name}", "train", arguments, detector, begins_with, (weights,), minutes, size))

        bits = ("--bits", self._preset.bits)
        images = str(max(round(transfer.calibration * self._choices.budget), MINIMUMS["calibration"]))
        arguments = ("sweep", *config, *self._gpus(), *bits, "--calib-images", images)
        arguments += _pairs({"MODEL.WEIGHTS": weights, **same, "OUTPUT_DIR": sweep})
        reads, minutes = (*reads, weights), self._on_gpus(transfer.sweep_minutes)
        makes = (sweep / "results.jsonl", quantization)
        self._add(Step(f"sweep-{name}", "sweep", arguments, sweep, reads, makes, minutes, 0.1))

        if seed == 0:
            shown = list(self._shown(transfer))
            score = ("--score", str(self._preset.score)) if self._preset.score else ()
            arguments = ("predict", *config, *bits, *score, "--quantization", str(quantization), "--out", str(pictures))
            arguments += (*_pairs({"MODEL.WEIGHTS": weights, **same}), *map(str, shown))
            drawn = tuple(pictures / f"{image.stem}.png" for image in shown)
            self._add(Step(f"predict-{name}", "predict", arguments, pictures, (*reads, quantization), drawn, 0.05, 0.3))
        return f"sweep-{name}"

    def _shortened(self, transfer: DetectorExperiment) -> dict[str, object]:
        """Fewer iterations for a smaller budget; a sweep says so too, for its rows' sake."""
        if self._choices.budget == 1:
            return {}
        iterations = int(read_config_file(transfer.config)["SOLVER.MAX_ITER"])
        return {"SOLVER.MAX_ITER": max(round(iterations * self._choices.budget), MINIMUMS["iterations"])}

    def _shown(self, transfer: DetectorExperiment) -> Iterator[Path]:
        data = self._preset.data
        root = self._out / "data" if data else get_datasets_root()
        numbers = (data.first_test_scene, data.first_test_scene + 1) if data else transfer.shown
        yield from (root / transfer.image.format(number) for number in numbers)

    def _add(self, step: Step) -> str:
        """Its name; one that is there already is the same."""
        self.steps.setdefault(step.name, replace(step, minutes=step.minutes + _START))
        return step.name


def _as_options(data: ToyDataSettings) -> tuple[str, ...]:
    """What of the settings is not the command's default."""
    plain = ToyDataSettings()
    named = {"scenes": data.scenes, "crops": data.crops, "crop-size": data.crop_size, "difficulty": data.difficulty}
    options = [f"--{name} {value}" for name, value in named.items() if value != getattr(plain, name.replace("-", "_"))]
    if (data.least_side, data.most_side) != (plain.least_side, plain.most_side):
        options.append(f"--size {data.least_side} {data.most_side}")
    return tuple(" ".join(options).split())


def _pairs(values: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(part) for pair in values.items() for part in pair)
