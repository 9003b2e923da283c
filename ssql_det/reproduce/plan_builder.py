"""Build the steps that make a table's rows: data, pretraining, conversion, training, sweep and drawn detections for a
detector; data, pretraining and probe for a linear probe. A step is a single command.

Each step has its own folder in the folder of the run, ``OUT``; a number at the end is the seed::

    OUT/data                         toy data
    OUT/pretrain/ssql-0              checkpoint.pth, metrics
    OUT/backbones/ssql-0             backbone.pkl in Detectron2's format, compared with the checkpoint
    OUT/detectors/c4-ssql-0          model_final.pth, coverage.json
    OUT/sweeps/c4-ssql-0             results.jsonl
    OUT/pictures/c4-ssql-0           detections at all bit-widths side by side
    OUT/probes/ssql-0                results.jsonl
    OUT/probes/simsiam-pact-4w4a-0   the same, of a network that was trained for this bit-width

One step analyzes all backbones that were pretrained on toy data with the first seed::

    OUT/analysis                     terms.csv, t-SNE maps of features, report.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ssql_det.core.config import read_config_file
from ssql_det.report.display_names import slugify, strip_ours
from ssql_det.report.table_sources import expand_bits_option
from ssql_det.reproduce.experiments import DetectorExperiment, Experiment, Pretraining, ProbeExperiment
from ssql_det.reproduce.presets import MINIMUMS, Options, Preset, count_seeds, get_datasets_root
from ssql_det.reproduce.steps import Step
from ssql_det.toydata.dataset import MANIFEST, ToyDataSettings

_ANALYZED_BITS = "FP,8,4,2w4a"
_CALIBRATION = ("--calib-images", "512")  # of probes and analyses, as for the numbers in docs
_QUANTIZATION = "quantization.safetensors"  # of a sweep, or of a backbone that is trained for one bit-width
_STARTUP_MINUTES = 0.1  # of each step's process


class PlanBuilder:
    """Collects steps, experiment by experiment and method by method; a step that several methods need is added once.

    ``row_steps``: by experiment name, the names of the steps that make the experiment's result rows.
    """

    def __init__(self, preset: Preset, options: Options, checkpoints: Mapping[str, str]) -> None:
        self._preset, self._options, self._checkpoints = preset, options, checkpoints
        self._out = options.out
        self.steps: dict[str, Step] = {}
        self.row_steps: dict[str, list[str]] = {}

    def add_method(self, experiment: Experiment, method: str) -> None:
        row_steps = self.row_steps.setdefault(experiment.name, [])
        has_user_checkpoint = experiment.match_method(method, self._checkpoints) is not None
        for seed in range(count_seeds(experiment, self._preset, self._options)):
            if isinstance(experiment, DetectorExperiment):
                row_steps.append(self._add_detector(experiment, method, seed))
            elif isinstance(experiment, ProbeExperiment) and (seed == 0 or not has_user_checkpoint):
                row_steps += self._add_probes(experiment, method, seed)

    def add_analysis(self) -> None:
        """Add one step that analyzes all networks pretrained on toy data with the first seed."""
        pretrainings = [
            step
            for step in self.steps.values()
            if step.kind == "pretrain" and step.folder.name.endswith("-0") and len(step.outputs) == 1
        ]  # not those of a single bit-width, which have a quantization file too
        if self._preset.data is None or not pretrainings:
            return
        folder = self._out / "analysis"
        checkpoints = tuple(step.outputs[0] for step in pretrainings)
        tsne_maps = (folder / f"tsne_{step.folder.name}.png" for step in pretrainings)
        arguments = ("analyze", "--checkpoints", *map(str, checkpoints), "--data", str(self._out / "data" / "crops"))
        amounts = ("--pairs", "256", "--points", "100")  # of images whose terms are compared; of points in a t-SNE map
        arguments += ("--bits", _ANALYZED_BITS, *amounts, *_CALIBRATION, "--out", str(folder))
        inputs, outputs = (*checkpoints, *self._add_data()), (folder / "terms.csv", *tsne_maps)
        self._add(
            Step(
                "analyze", "analyze", arguments, folder, inputs, outputs, minutes=0.05 * len(pretrainings), megabytes=1
            )
        )

    def _add_data(self) -> tuple[Path, ...]:
        """Add the step that makes toy data, if any; return the input of later steps, a manifest with hashes of all
        files."""
        data = self._preset.data
        if data is None:
            return ()
        folder = self._out / "data"
        arguments = ("make-toy-data", str(folder), *_format_data_options(data))
        minutes = (0.05 * data.scenes + 0.006 * data.crops) / 1000  # measured per 1000 images
        manifest = (folder / MANIFEST,)
        self._add(Step("data", "data", arguments, folder, (), manifest, minutes, data.megabytes))
        return manifest

    def _add_checkpoint(
        self, experiment: Experiment, method: str, seed: int, bits: str = ""
    ) -> tuple[Path, str] | None:
        """The path of a backbone's checkpoint, and a name for folders; ``None`` for random weights.

        The checkpoint is the user's, or of a pretraining that this adds as a step. ``bits``: the bit-width that the
        backbone is trained for; empty: for all.
        """
        user_method, pretraining = experiment.match_method(method, self._checkpoints), experiment.methods.get(method)
        if user_method is not None:
            return Path(os.path.expanduser(self._checkpoints[user_method])), slugify(strip_ours(user_method))
        if pretraining is None:
            return None
        path = self._add_pretraining(pretraining.at(bits) if bits else pretraining, seed)
        return path, path.parent.name

    def _add_backbone(self, experiment: DetectorExperiment, method: str, seed: int) -> Path | None:
        """Add pretraining and conversion; return the converted backbone's path, or ``None`` for random weights."""
        named_checkpoint = self._add_checkpoint(experiment, method, seed if self._preset.pretrains_each_seed else 0)
        if named_checkpoint is None:
            return None
        checkpoint, name = named_checkpoint
        folder = self._out / "backbones" / name
        path = folder / "backbone.pkl"
        arguments = ("convert", str(checkpoint), str(path), "--to", "detectron2", "--verify", "--force")
        megabytes = 0.1 * experiment.megabytes
        self._add(
            Step(
                f"convert-{name}",
                "convert",
                arguments,
                folder,
                (checkpoint,),
                (path,),
                minutes=0.05,
                megabytes=megabytes,
            )
        )
        return path

    def _add_pretraining(self, pretraining: Pretraining, seed: int) -> Path:
        """Add a pretraining; return the path of its checkpoint."""
        name = f"{pretraining.name}-{seed}"
        folder = self._out / "pretrain" / name
        path = folder / "checkpoint.pth"
        overrides = {"DATA.TRAIN": self._get_data_option(pretraining.data), "OUTPUT_DIR": folder, "SEED": seed}
        arguments = ("pretrain", "--config-file", pretraining.config, *self._gpu_options(), "--resume")
        arguments += (*pretraining.overrides, *_flatten_pairs(overrides))
        minutes, size = self._scale_minutes(pretraining.minutes), pretraining.megabytes
        inputs = (Path(pretraining.config), *self._add_data())
        outputs = (path, *([folder / _QUANTIZATION] if pretraining.is_per_width else []))
        self._add(Step(f"pretrain-{name}", "pretrain", arguments, folder, inputs, outputs, minutes, size))
        return path

    def _get_data_option(self, dataset: str) -> str:
        """The images of pretraining and probes, as ``--data`` names them: the toy crops or a real dataset."""
        return str(self._out / "data" / "crops") if self._preset.data else self._options.get_data_option(dataset)

    def _add_probes(self, experiment: ProbeExperiment, method: str, seed: int) -> list[str]:
        """Add the probe of a method, or one for each bit-width that it trains a network for; return their names."""
        pretraining, bits_option = experiment.methods.get(method), self._options.bits or experiment.bits
        has_user_checkpoint = experiment.match_method(method, self._checkpoints) is not None
        if has_user_checkpoint or pretraining is None or not pretraining.is_per_width:
            return [self._add_probe(experiment, method, seed, bits_option)]
        widths = [bits for bits in expand_bits_option(bits_option) if bits != "FP"]
        return [self._add_probe(experiment, method, seed, bits, is_trained_for_bits=True) for bits in widths]

    def _add_probe(
        self, experiment: ProbeExperiment, method: str, seed: int, bits: str, is_trained_for_bits: bool = False
    ) -> str:
        """Add a probe; return the name of the step. ``is_trained_for_bits``: the backbone is trained for these bits
        alone, and has a quantization file.

        Several tables use one probe of a backbone, whose rows have the method that the checkpoint stores. ``--method``
        is passed if it stores another: for a user's checkpoint, or a letter of the ablation.
        """
        user_method = experiment.match_method(method, self._checkpoints)
        named_checkpoint = self._add_checkpoint(experiment, method, seed, bits if is_trained_for_bits else "")
        assert named_checkpoint is not None, f"{method} has random weights, which are not probed"
        checkpoint, name = named_checkpoint
        folder = self._out / "probes" / name
        results = folder / "results.jsonl"
        quantization = [checkpoint.with_name(_QUANTIZATION)] if is_trained_for_bits else []
        calibration = ("--quantization", *map(str, quantization)) if is_trained_for_bits else _CALIBRATION
        arguments = ("probe", *experiment.arguments, *calibration, "--resume", "--checkpoint", str(checkpoint))
        arguments += ("--data", self._get_data_option(experiment.data), "--bits", bits, "--out", str(results))
        if is_trained_for_bits:
            arguments += ("--method", f"{method} (our reconstruction)")
        elif user_method is not None or (method.startswith("(") and method not in experiment.aliases):
            arguments += ("--method", strip_ours(user_method or method))
        inputs = (checkpoint, *quantization, *self._add_data())
        parts = len(experiment.bits.split(",")) if is_trained_for_bits else 1
        minutes = experiment.minutes * self._options.budget / parts
        return self._add(Step(f"probe-{name}", "probe", arguments, folder, inputs, (results,), minutes, megabytes=0.1))

    def _gpu_options(self) -> tuple[str, ...]:
        return ("--num-gpus", str(self._options.num_gpus)) if self._options.num_gpus > 1 else ()

    def _scale_minutes(self, minutes: float) -> float:
        return minutes * self._options.budget / self._options.num_gpus

    def _add_detector(self, experiment: DetectorExperiment, method: str, seed: int) -> str:
        """Add training, sweep and, for the first seed, drawn detections; return the name of the sweep, which makes
        rows."""
        backbone, row_method = self._add_backbone(experiment, method, seed), strip_ours(method)
        name = f"{experiment.name}-{slugify(row_method)}-{seed}"
        detector, sweep, pictures = (self._out / kind / name for kind in ("detectors", "sweeps", "pictures"))
        weights, quantization = detector / "model_final.pth", sweep / _QUANTIZATION
        config, inputs = ("--config-file", experiment.config), (Path(experiment.config), *self._add_data())
        overrides = {"SSQL_DET.METHOD": row_method, **self._iterations_overrides(experiment)}

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
        self._add(Step(f"sweep-{name}", "sweep", arguments, sweep, inputs, outputs, minutes, megabytes=0.1))

        if seed == 0:
            images_to_draw = list(self._list_images_to_draw(experiment))
            threshold = ("--score", str(self._preset.score_threshold)) if self._preset.score_threshold else ()
            arguments = ("predict", *config, *bits, *threshold, "--quantization", str(quantization))
            arguments += ("--out", str(pictures))
            arguments += (*_flatten_pairs({"MODEL.WEIGHTS": weights, **overrides}), *map(str, images_to_draw))
            drawn, inputs = tuple(pictures / f"{image.stem}.png" for image in images_to_draw), (*inputs, quantization)
            self._add(
                Step(f"predict-{name}", "predict", arguments, pictures, inputs, drawn, minutes=0.05, megabytes=0.3)
            )
        return f"sweep-{name}"

    def _iterations_overrides(self, experiment: DetectorExperiment) -> dict[str, object]:
        """The overrides that reduce iterations to the budget; sweeps need them too, since rows store the overrides."""
        if self._options.budget == 1:
            return {}
        config = read_config_file(experiment.config)
        iterations = {key: int(config[key]) for key in ("SOLVER.MAX_ITER", "TEST.PRECISE_BN.NUM_ITER") if key in config}
        budget, minimum = self._options.budget, MINIMUMS["iterations"]
        return {key: max(round(count * budget), minimum) for key, count in iterations.items()}

    def _list_images_to_draw(self, experiment: DetectorExperiment) -> Iterator[Path]:
        data = self._preset.data
        root = self._out / "data" if data else get_datasets_root()
        numbers = (data.first_test_scene, data.first_test_scene + 1) if data else experiment.image_numbers
        yield from (root / experiment.image_pattern.format(number) for number in numbers)

    def _add(self, step: Step) -> str:
        """Add a step unless it exists; return the step's name."""
        self.steps.setdefault(step.name, replace(step, minutes=step.minutes + _STARTUP_MINUTES))
        return step.name


def _format_data_options(data: ToyDataSettings) -> tuple[str, ...]:
    """The options of ``make-toy-data`` for the settings that differ from the defaults."""
    defaults = ToyDataSettings()
    settings = {"scenes": data.scenes, "crops": data.crops, "crop_size": data.crop_size, "difficulty": data.difficulty}
    changed = {name: value for name, value in settings.items() if value != getattr(defaults, name)}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
    if (data.least_side, data.most_side) != (defaults.least_side, defaults.most_side):
        options.append(f"--size {data.least_side} {data.most_side}")
    return tuple(" ".join(options).split())


def _flatten_pairs(values: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(part) for pair in values.items() for part in pair)
