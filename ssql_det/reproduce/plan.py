"""Turn a preset and a user's options into an ordered plan of steps, check its requirements, and hold its results."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssql_det.core.config_files import find_config
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.files import check_disk_space
from ssql_det.core.rows import Row
from ssql_det.report.comparison import Comparison, compare_with_published
from ssql_det.report.display_names import match_published_name, strip_ours
from ssql_det.report.row_groups import load_rows
from ssql_det.reproduce.experiments import RANDOM, Experiment
from ssql_det.reproduce.plan_builder import PlanBuilder
from ssql_det.reproduce.presets import MINIMUMS, Options, Preset, count_seeds, get_datasets_root
from ssql_det.reproduce.runner import DONE, StepOutcome
from ssql_det.reproduce.steps import Step
from ssql_det.toydata.dataset import ToyDataSettings

_KINDS = ("data", "pretrain", "convert", "train", "sweep", "predict", "probe", "analyze")  # of steps, in their order


@dataclass(frozen=True)
class Plan:
    """Ordered steps. ``row_steps``: by experiment name, the names of the steps that make the experiment's result rows.
    ``left_out``: sentences on published rows that no step reproduces, with the reason."""

    preset: Preset
    options: Options
    steps: tuple[Step, ...]
    row_steps: Mapping[str, Sequence[str]]
    left_out: tuple[str, ...]

    @property
    def out(self) -> Path:
        return self.options.out

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The experiments of the preset that have steps in this plan."""
        return tuple(each for each in self.preset.experiments if self.row_steps.get(each.name))

    def has_kind(self, kind: str) -> bool:
        """Whether the plan has a step of that kind."""
        return any(step.kind == kind for step in self.steps)

    def count_seeds(self, experiment: Experiment) -> int:
        return count_seeds(experiment, self.preset, self.options)

    @property
    def datasets_root(self) -> Path:
        """The value of ``DETECTRON2_DATASETS`` for the steps."""
        return self.out / "data" if self.preset.data else get_datasets_root()


def make_plan(preset: Preset, options: Options) -> Plan:
    """The steps that reproduce the tables of the options, and the methods that are left out.

    >>> from ssql_det.reproduce.presets import get_preset
    >>> make_plan(get_preset("mini"), Options(Path("runs/mini"))).steps[0].command
    'ssql-det make-toy-data runs/mini/data --difficulty 0.0 --size 128 128'
    """
    if preset.data is None and options.budget != 1:
        raise UserError(f"--budget shortens runs on toy data; the preset {preset.name} has none, so omit --budget")
    experiments = _select_experiments(preset, options)
    methods = [_resolve_method(name, experiments) for name in options.methods]
    checkpoints = _resolve_checkpoints(options, experiments, methods)
    data = preset.data and _scale_data(preset.data, options.budget, preset.min_crops)
    preset = dataclasses.replace(preset, data=data, bits=options.bits or preset.bits)
    builder = PlanBuilder(preset, options, checkpoints)
    left_out = []
    for experiment in experiments:
        for method in experiment.all_methods:
            if methods and experiment.match_method(method, methods) is None:
                continue
            pretraining = experiment.methods.get(method)
            has_user_checkpoint = experiment.match_method(method, checkpoints) is not None
            if pretraining is not None and pretraining.is_per_width and not methods and not has_user_checkpoint:
                option = f"--methods {shlex.quote(method)}"
                left_out.append(
                    f"{method} of Table {experiment.table}: it trains a network for each bit-width; add {option}"
                )
            elif method in experiment.methods or has_user_checkpoint:
                builder.add_method(experiment, method)
            else:
                option = f"--checkpoint {shlex.quote(f'{method}=FILE')}"
                left_out.append(f"{method} of Table {experiment.table}: no config pretrains its backbone; add {option}")
    builder.add_analysis()
    if not builder.steps:
        raise UserError(f"no config pretrains {', '.join(methods)}; add --checkpoint {methods[0]!r}=FILE")
    # Kinds that others depend on come first, and within a kind the longest step, so that jobs are rarely idle.
    steps = sorted(builder.steps.values(), key=lambda step: (_KINDS.index(step.kind), -step.minutes))
    return Plan(preset, options, tuple(steps), builder.row_steps, tuple(left_out))


def _select_experiments(preset: Preset, options: Options) -> list[Experiment]:
    missing = [str(table) for table in options.tables if table not in preset.tables]
    if missing:
        tables = ", ".join(map(str, preset.tables))
        raise UserError(f"--table {' '.join(missing)}: not in the preset {preset.name}, which has {tables}")
    experiments = [each for table in options.tables for each in preset.experiments if each.table == table]
    if preset.data is None and options.checkpoints and len(experiments) > 1:
        if len(options.tables) > 1:
            raise UserError("--checkpoint: the tables need different architectures; choose one, such as --table 6")
        raise UserError(
            f"Table {experiments[0].table} has several networks and a checkpoint only one; run `ssql-det probe linear "
            "--protocol published --checkpoint FILE ...` and add its rows to the table with `ssql-det tables`"
        )
    return experiments


def _resolve_checkpoints(options: Options, experiments: Sequence[Experiment], methods: Sequence[str]) -> dict[str, str]:
    """The user's ``--checkpoint`` files by the printed name of the method."""
    files: dict[str, str] = {}
    for name, file in options.checkpoints:
        method = _resolve_method(name, experiments)
        if method == RANDOM:
            raise UserError(f"--checkpoint {name}={file}: {method!r} has random weights; omit this option")
        if method in files:
            raise UserError(f"--checkpoint gives two files for {name}, {files[method]} and {file}; leave one out")
        if methods and method not in methods:
            raise UserError(f"--checkpoint gives a file for {method!r}, which --methods leaves out; add it there")
        files[method] = file
    return files


def _scale_data(data: ToyDataSettings, budget: float, min_crops: int) -> ToyDataSettings:
    scenes, crops = max(round(data.scenes * budget), MINIMUMS["scenes"]), max(round(data.crops * budget), min_crops)
    return dataclasses.replace(data, scenes=scenes, crops=crops)


def _resolve_method(name: str, experiments: Sequence[Experiment]) -> str:
    """The printed name of the method that a user means by ``name``, in any spelling."""
    methods = [method for experiment in experiments for method in experiment.all_methods]
    aliases = [method for experiment in experiments for method in experiment.aliases.values()]
    known = dict.fromkeys([*methods, *aliases])
    method = match_published_name(name, known)
    if method is None:
        hint = did_you_mean(name, map(strip_ours, known))
        raise UserError(f"unknown method {name!r}{hint} (known: {', '.join(known)})")
    return method


def check_plan(plan: Plan) -> None:
    """Raise now what would fail after hours: missing configs, checkpoints or datasets, or too little disk space."""
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {plan.out} is a file; name a folder")
    outputs = {path for step in plan.steps for path in step.outputs}
    for step in plan.steps:
        for path in step.inputs:
            if path in outputs or path.is_file():
                continue
            if path.suffix == ".yaml":
                find_config(path)  # it may be one of the package's; raises if there is none
                continue
            raise UserError(f"there is no file {path}, which {step.name} reads; check --checkpoint")
    if plan.preset.data is None:
        _check_datasets(plan)
    check_disk_space(plan.out, sum(step.megabytes for step in plan.steps if not step.folder.exists()))


def _check_datasets(plan: Plan) -> None:
    """Check that the datasets exist: pretraining and probes find them by option, detectors by environment variable."""
    options = plan.options
    for name, option, folder in (("ImageNet", "imagenet", options.imagenet), ("CIFAR-10", "cifar10", options.cifar10)):
        data_option = options.get_data_option(option)
        kinds = {step.kind for step in plan.steps if data_option in step.arguments} & {"pretrain", "probe"}
        if kinds and not folder.is_dir():
            use = "probe with" if kinds == {"probe"} else "pretrain on"
            raise UserError(f"there is no folder {folder} to {use}; say where {name} is: --{option} DIR")
    for table, names in {6: ("VOC2007", "VOC2012"), 7: ("coco",)}.items():
        for name in names if table in options.tables else ():
            if not (plan.datasets_root / name).is_dir():
                raise UserError(
                    f"Table {table} needs {name}, and {plan.datasets_root} has no folder of that name; set "
                    "DETECTRON2_DATASETS to the folder of the datasets, and see `ssql-det check-data`"
                )


@dataclass(frozen=True)
class RunResults:
    """A plan and the outcomes of its steps. ``command``: what the user typed; ``minutes``: the duration of this run."""

    plan: Plan
    outcomes: Mapping[str, StepOutcome]
    command: str
    minutes: float

    @functools.cached_property
    def rows(self) -> Mapping[str, list[Row]]:
        """The result rows of the finished steps, by experiment name."""
        files = {step.name: step.outputs[0] for kind in ("sweep", "probe") for step in self.list_done(kind)}
        row_steps = self.plan.row_steps
        return {
            experiment.name: load_rows(files[name] for name in row_steps[experiment.name] if name in files)
            for experiment in self.plan.experiments
        }

    @functools.cached_property
    def comparisons(self) -> Mapping[int, Comparison]:
        """The comparison with each published table of the plan, by table number."""
        by_table = {experiment.table: self.list_experiments(experiment.table) for experiment in self.plan.experiments}
        return {
            number: compare_with_published(
                number, [row for each in experiments for row in self.rows[each.name]], dataset=experiments[0].dataset
            )
            for number, experiments in by_table.items()
        }

    def list_experiments(self, table: int) -> list[Experiment]:
        """The experiments that measure a table: one, or one for each of the table's networks."""
        return [experiment for experiment in self.plan.experiments if experiment.table == table]

    def list_done(self, kind: str) -> Iterator[Step]:
        """The finished steps of a kind."""
        for step in self.plan.steps:
            if step.kind == kind and step.name in self.outcomes and self.outcomes[step.name].state == DONE:
                yield step


def sum_minutes_by_kind(results: RunResults) -> tuple[tuple[str, str, str], ...]:
    """Table rows: kind of steps, number of finished steps, their minutes in total; the last row sums over all kinds."""
    kinds = dict.fromkeys(step.kind for step in results.plan.steps)
    seconds = {kind: [results.outcomes[step.name].seconds for step in results.list_done(kind)] for kind in kinds}
    seconds["all"] = [duration for durations in seconds.values() for duration in durations]
    return tuple((kind, str(len(durations)), f"{sum(durations) / 60:.1f}") for kind, durations in seconds.items())


def format_commands(plan: Plan) -> str:
    """The plan as a shell script, with one CPU thread per step as in a run, so that the numbers are the same."""
    environment = f"export DETECTRON2_DATASETS={shlex.quote(str(plan.datasets_root))}"
    one_thread = "" if plan.options.has_gpu else " OMP_NUM_THREADS=1"
    return "\n".join([environment + one_thread, *(step.command for step in plan.steps)])
