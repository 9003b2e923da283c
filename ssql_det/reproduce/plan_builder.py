"""Build the steps behind a table's rows: data, pretraining, conversion, training, sweep and drawn detections; or data,
pretraining and probe. Each is a single command.

Each step has a folder of its own below the run's::

    OUT/data                         toy data
    OUT/pretrain/ssql-0              checkpoint.pth, metrics
    OUT/backbones/ssql-0             backbone.pkl in Detectron2's format, compared with the checkpoint
    OUT/detectors/c4-ssql-0          model_final.pth, coverage.json
    OUT/sweeps/c4-ssql-0             results.jsonl
    OUT/pictures/c4-ssql-0           detections at all bit-widths side by side
    OUT/probes/ssql-0                results.jsonl

and there is one for all backbones that were pretrained on toy data with the first seed::

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
from ssql_det.reproduce.steps import Step
from ssql_det.toydata.dataset import MANIFEST, ToyDataSettings

_ANALYZED_BITS = "FP,8,4,2w4a"
_CALIBRATION = ("--calib-images", "512")  # of probes and analyses, as for the published numbers in docs
_STARTUP_MINUTES = 0.1  # of a process


class PlanBuilder:
    """Collects the steps of one experiment and method after another; steps that several need are added once.

    ``row_steps`` are the names of the steps that make an experiment's rows, by the experiment's name.
    """

    def __init__(self, preset: Preset, options: Options, checkpoints: Mapping[str, str]) -> None:
        self._preset, self._options, self._checkpoints = preset, options, checkpoints
        self._out = options.out
        self.steps: dict[str, Step] = {}
        self.row_steps: dict[str, list[str]] = {}

    def add_method(self, experiment: Experiment, method: str) -> None:
        names = self.row_steps.setdefault(experiment.name, [])
        is_given = experiment.match_method(method, self._checkpoints) is not None
        for seed in range(count_seeds(experiment, self._preset, self._options)):
            if isinstance(experiment, DetectorExperiment):
                names.append(self._add_detector(experiment, method, seed))
            elif isinstance(experiment, ProbeExperiment) and (seed == 0 or not is_given):
                names.append(self._add_probe(experiment, method, seed))

    def add_analysis(self) -> None:
        """Analyze the networks that were pretrained on toy data with the first seed, side by side."""
        runs = [step for step in self.steps.values() if step.kind == "pretrain" and step.folder.name.endswith("-0")]
        if self._preset.data is None or not runs:
            return
        folder = self._out / "analysis"
        checkpoints = tuple(step.outputs[0] for step in runs)
        maps = (folder / f"tsne_{step.folder.name}.png" for step in runs)
        arguments = ("analyze", "--checkpoints", *map(str, checkpoints), "--data", str(self._out / "data" / "crops"))
        arguments += (
            "--bits",
            _ANALYZED_BITS,
            "--pairs",
            "256",
            "--points",
            "100",
            *_CALIBRATION,
            "--out",
            str(folder),
        )
        inputs, outputs = (*checkpoints, *self._add_data()), (folder / "terms.csv", *maps)
        self._add(Step("analyze", "analyze", arguments, folder, inputs, outputs, 0.05 * len(runs), 1))

    def _add_data(self) -> tuple[Path, ...]:
        """The input that stands for the toy data: their manifest, which has every file's hash."""
        data = self._preset.data
        if data is None:
            return ()
        folder = self._out / "data"
        arguments = ("make-toy-data", str(folder), *_format_data_options(data))
        minutes = (0.05 * data.scenes + 0.006 * data.crops) / 1000
        manifest = (folder / MANIFEST,)
        self._add(Step("data", "data", arguments, folder, (), manifest, minutes, data.megabytes))
        return manifest

    def _add_source(self, experiment: Experiment, method: str, seed: int) -> tuple[Path, str] | None:
        """A backbone's checkpoint, given or pretrained, and a name for what is made of it; ``None``: random weights."""
        given, pretraining = experiment.match_method(method, self._checkpoints), experiment.methods.get(method)
        if given is not None:
            return Path(os.path.expanduser(self._checkpoints[given])), slugify(strip_ours(given))
        if pretraining is None:
            return None
        path = self._add_pretraining(pretraining, seed)
        return path, path.parent.name

    def _add_backbone(self, experiment: DetectorExperiment, method: str, seed: int) -> Path | None:
        """The converted backbone's path, or ``None`` for random weights."""
        source = self._add_source(experiment, method, seed if self._preset.pretrains_each_seed else 0)
        if source is None:
            return None
        checkpoint, name = source
        folder = self._out / "backbones" / name
        path = folder / "backbone.pkl"
        arguments = ("convert", str(checkpoint), str(path), "--to", "detectron2", "--verify", "--force")
        megabytes = 0.1 * experiment.megabytes
        self._add(Step(f"convert-{name}", "convert", arguments, folder, (checkpoint,), (path,), 0.05, megabytes))
        return path

    def _add_pretraining(self, pretraining: Pretraining, seed: int) -> Path:
        """The checkpoint's path."""
        name = f"{pretraining.name}-{seed}"
        folder = self._out / "pretrain" / name
        path = folder / "checkpoint.pth"
        overrides = {"DATA.TRAIN": self._get_data_option(pretraining.data), "OUTPUT_DIR": folder, "SEED": seed}
        arguments = ("pretrain", "--config-file", pretraining.config, *self._gpu_options(), "--resume")
        arguments += (*pretraining.overrides, *_flatten_pairs(overrides))
        minutes, size = self._scale_minutes(pretraining.minutes), pretraining.megabytes
        inputs = (Path(pretraining.config), *self._add_data())
        self._add(Step(f"pretrain-{name}", "pretrain", arguments, folder, inputs, (path,), minutes, size))
        return path

    def _get_data_option(self, dataset: str) -> str:
        """What backbones are pretrained on and probed with."""
        return str(self._out / "data" / "crops") if self._preset.data else self._options.get_data_option(dataset)

    def _add_probe(self, experiment: ProbeExperiment, method: str, seed: int) -> str:
        """The name of the step. Tables share the probe of a backbone, so ``--method`` is given only where the
        checkpoint does not store the method: one of the user's, or a letter of the ablation."""
        source, given = self._add_source(experiment, method, seed), experiment.match_method(method, self._checkpoints)
        assert source is not None, f"{method} has random weights, which are not probed"
        checkpoint, name = source
        folder = self._out / "probes" / name
        results = folder / "results.jsonl"
        bits = ("--bits", self._options.bits or experiment.bits)
        arguments = ("probe", *experiment.arguments, *_CALIBRATION, "--resume", "--checkpoint", str(checkpoint))
        arguments += ("--data", self._get_data_option(experiment.data), *bits, "--out", str(results))
        if given is not None or (method.startswith("(") and method not in experiment.aliases):
            arguments += ("--method", strip_ours(given or method))
        inputs, minutes = (checkpoint, *self._add_data()), experiment.minutes * self._options.budget
        return self._add(Step(f"probe-{name}", "probe", arguments, folder, inputs, (results,), minutes, 0.1))

    def _gpu_options(self) -> tuple[str, ...]:
        return ("--num-gpus", str(self._options.num_gpus)) if self._options.num_gpus > 1 else ()

    def _scale_minutes(self, minutes: float) -> float:
        return minutes * self._options.budget / self._options.num_gpus

    def _add_detector(self, experiment: DetectorExperiment, method: str, seed: int) -> str:
        """Train and sweep; for the first seed also draw detections. The name of the sweep, which makes the rows."""
        backbone, row_method = self._add_backbone(experiment, method, seed), strip_ours(method)
        name = f"{experiment.name}-{slugify(row_method)}-{seed}"
        detector, sweep, pictures = (self._out / kind / name for kind in ("detectors", "sweeps", "pictures"))
        weights, quantization = detector / "model_final.pth", sweep / "quantization.safetensors"
        config, inputs = ("--config-file", experiment.config), (Path(experiment.config), *self._add_data())
        overrides = {"SSQL_DET.METHOD": row_method, **self._iterations_override(experiment)}

        train_overrides = {"MODEL.WEIGHTS": backbone or "", **overrides, "SEED": seed, "OUTPUT_DIR": detector}
        arguments = ("train-det", *config, *self._gpu_options(), "--resume", *_flatten_pairs(train_overrides))
        minutes, size = self._scale_minutes(experiment.minutes), experiment.megabytes
        train_inputs = (*inputs, *([backbone] if backbone else []))
        self._add(Step(f"train-{name}", "train", arguments, detector, train_inputs, (weights,), minutes, size))

        bits = ("--bits", self._preset.bits)
        images = max(round(experiment.calibration_images * self._options.budget), MINIMUMS["calibration_images"])
        arguments = ("sweep", *config, *self._gpu_options(), *bits, "--calib-images", str(images))
        arguments += _flatten_pairs({"MODEL.WEIGHTS": weights, **overrides, "OUTPUT_DIR": sweep})
        inputs, minutes = (*inputs, weights), self._scale_minutes(experiment.sweep_minutes)
        outputs = (sweep / "results.jsonl", quantization)
        self._add(Step(f"sweep-{name}", "sweep", arguments, sweep, inputs, outputs, minutes, 0.1))

        if seed == 0:
            images_to_draw = list(self._list_images_to_draw(experiment))
            score = ("--score", str(self._preset.score)) if self._preset.score else ()
            arguments = ("predict", *config, *bits, *score, "--quantization", str(quantization), "--out", str(pictures))
            arguments += (*_flatten_pairs({"MODEL.WEIGHTS": weights, **overrides}), *map(str, images_to_draw))
            drawn, inputs = tuple(pictures / f"{image.stem}.png" for image in images_to_draw), (*inputs, quantization)
            self._add(Step(f"predict-{name}", "predict", arguments, pictures, inputs, drawn, 0.05, 0.3))
        return f"sweep-{name}"

    def _iterations_override(self, experiment: DetectorExperiment) -> dict[str, object]:
        """Fewer iterations for a smaller budget; sweeps get it too, since rows name their config's overrides."""
        if self._options.budget == 1:
            return {}
        iterations = int(read_config_file(experiment.config)["SOLVER.MAX_ITER"])
        return {"SOLVER.MAX_ITER": max(round(iterations * self._options.budget), MINIMUMS["iterations"])}

    def _list_images_to_draw(self, experiment: DetectorExperiment) -> Iterator[Path]:
        data = self._preset.data
        root = self._out / "data" if data else get_datasets_root()
        numbers = (data.first_test_scene, data.first_test_scene + 1) if data else experiment.image_numbers
        yield from (root / experiment.image_pattern.format(number) for number in numbers)

    def _add(self, step: Step) -> str:
        """Add a step unless it exists; its name."""
        self.steps.setdefault(step.name, replace(step, minutes=step.minutes + _STARTUP_MINUTES))
        return step.name


def _format_data_options(data: ToyDataSettings) -> tuple[str, ...]:
    """The options of ``make-toy-data`` for settings that are not its defaults."""
    defaults = ToyDataSettings()
    settings = {"scenes": data.scenes, "crops": data.crops, "crop_size": data.crop_size, "difficulty": data.difficulty}
    changed = {name: value for name, value in settings.items() if value != getattr(defaults, name)}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
    if (data.least_side, data.most_side) != (defaults.least_side, defaults.most_side):
        options.append(f"--size {data.least_side} {data.most_side}")
    return tuple(" ".join(options).split())


def _flatten_pairs(values: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(part) for pair in values.items() for part in pair)
