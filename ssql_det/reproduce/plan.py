"""A preset and a user's choices as a plan: which steps there are, in which order, what is left out, what would fail.
And a plan with what became of it: what tables, report and terminal are made from.
"""

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
from ssql_det.reproduce.step_cache import Step
from ssql_det.toydata.dataset import ToyDataSettings

_KINDS = ("data", "pretrain", "convert", "train", "sweep", "predict", "probe", "analyze")


@dataclass(frozen=True)
class Plan:
    """``rows_of``: by the name of a part, the steps that make its rows. ``left_out``: what a table has and this plan
    has not, with the reason."""

    preset: Preset
    choices: Options
    steps: tuple[Step, ...]
    rows_of: Mapping[str, Sequence[str]]
    left_out: tuple[str, ...]

    @property
    def out(self) -> Path:
        return self.choices.out

    @property
    def parts(self) -> tuple[Experiment, ...]:
        """Those of which there is a step."""
        return tuple(part for part in self.preset.parts if self.rows_of.get(part.name))

    def has(self, kind: str) -> bool:
        """Whether there is a step of that kind."""
        return any(step.kind == kind for step in self.steps)

    def seeds(self, part: Experiment) -> int:
        return count_seeds(part, self.preset, self.choices)

    @property
    def data(self) -> Path:
        """What ``DETECTRON2_DATASETS`` has to say."""
        return self.out / "data" if self.preset.data else get_datasets_root()


def make_plan(preset: Preset, choices: Options) -> Plan:
    """
    >>> [step.command for step in make_plan(preset("mini"), Options(Path("runs/mini"))).steps]
    ['ssql-det make-toy-data runs/mini/data --scenes 1000 ...', ...]
    """
    if preset.data is None and choices.budget != 1:
        raise UserError("--budget is a share of toy data; published recipes are what they are, so leave it out")
    parts = _asked(preset, choices)
    wanted = [_printed(name, parts) for name in choices.methods]
    files = _files(choices, parts, wanted)
    preset = dataclasses.replace(
        preset,
        data=preset.data and _scaled(preset.data, choices.budget),
        bits=choices.bits or preset.bits,
    )
    builder = PlanBuilder(preset, choices, files)
    left_out = []
    for part in parts:
        for method in part.all_methods:
            if wanted and part.among(method, wanted) is None:
                continue
            if method in part.methods or part.among(method, files) is not None:
                builder.add(part, method)
            else:
                given = f"--checkpoint {shlex.quote(f'{method}=FILE')}"
                left_out.append(f"{method} of Table {part.table}: no step makes its backbone; give it by {given}")
    builder.analyze()
    if not builder.steps:
        raise UserError(f"there is nothing to do for {', '.join(wanted)}; give --checkpoint {wanted[0]!r}=FILE")
    # What others wait for first, and of that the longest: so no lane is empty while another works alone.
    steps = sorted(builder.steps.values(), key=lambda step: (_KINDS.index(step.kind), -step.minutes))
    return Plan(preset, choices, tuple(steps), builder.rows_of, tuple(left_out))


def _asked(preset: Preset, choices: Options) -> list[Experiment]:
    lacking = [str(table) for table in choices.tables if table not in preset.tables]
    if lacking:
        has = ", ".join(map(str, preset.tables))
        raise UserError(f"--table {' '.join(lacking)} is not of the preset {preset.name}, which has {has}")
    parts = [part for table in choices.tables for part in preset.parts if part.table == table]
    if preset.data is None and choices.checkpoints and len(parts) > 1:
        if len(choices.tables) > 1:
            raise UserError("a checkpoint is of one architecture; say which table it is for, as --table 6")
        raise UserError(
            f"Table {parts[0].table} is of several networks and a checkpoint of one; probe it by itself, `ssql-det "
            "probe linear --protocol published --checkpoint FILE ...`, and set its rows in by `ssql-det tables`"
        )
    return parts


def _files(choices: Options, parts: Sequence[Experiment], wanted: Sequence[str]) -> dict[str, str]:
    """The given checkpoints by the printed names of their methods."""
    files: dict[str, str] = {}
    for name, file in choices.checkpoints:
        method = _printed(name, parts)
        if method == RANDOM:
            raise UserError(f"{method!r} has random weights, so --checkpoint {name}={file} has no place")
        if method in files:
            raise UserError(f"--checkpoint gives {name} two files, {files[method]} and {file}; leave one out")
        if wanted and method not in wanted:
            raise UserError(f"--checkpoint gives {method!r} a file and --methods leaves it out; name it there too")
        files[method] = file
    return files


def _scaled(data: ToyDataSettings, budget: float) -> ToyDataSettings:
    counts = {name: max(round(getattr(data, name) * budget), MINIMUMS[name]) for name in ("scenes", "crops")}
    return dataclasses.replace(data, **counts)


def _printed(name: str, parts: Sequence[Experiment]) -> str:
    methods = [method for part in parts for method in part.all_methods]
    known = dict.fromkeys([*methods, *(meant for part in parts for meant in part.meaning.values())])
    printed = match_published_name(name, known)
    if printed is None:
        near = did_you_mean(name, map(strip_ours, known))
        raise UserError(f"there is no method {name!r}{near} (known: {', '.join(known)})")
    return printed


def check_plan(plan: Plan) -> None:
    """What would end it after hours: configs, given files and data sets are there, and the disk has room."""
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {plan.out} is a file; name a folder")
    made = {path for step in plan.steps for path in step.makes}
    for step in plan.steps:
        for path in step.reads:
            if path in made or path.is_file():
                continue
            if path.suffix == ".yaml":
                find_config(path)  # the package's
                continue
            raise UserError(f"there is no file {path}, which {step.name} begins with; check --checkpoint")
    if plan.preset.data is None:
        _check_data_sets(plan)
    check_disk_space(plan.out, sum(step.megabytes for step in plan.steps if not step.folder.exists()))


def _check_data_sets(plan: Plan) -> None:
    """What pretraining and probes read is an option, what detectors read a variable."""
    choices = plan.choices
    for name, option, folder in (("ImageNet", "imagenet", choices.imagenet), ("CIFAR-10", "cifar10", choices.cifar10)):
        kinds, named = ("pretrain", "probe"), choices.images(option)
        users = [step for step in plan.steps if step.kind in kinds and named in step.arguments]
        if users and not folder.is_dir():
            doing = "probe with" if all(step.kind == "probe" for step in users) else "pretrain on"
            raise UserError(f"there is no folder {folder} to {doing}; say where {name} is: --{option} DIR")
    for table, names in {6: ("VOC2007", "VOC2012"), 7: ("coco",)}.items():
        for name in names if table in choices.tables else ():
            if not (plan.data / name).is_dir():
                raise UserError(
                    f"Table {table} needs {name}, and {plan.data} has no folder of that name; point "
                    "DETECTRON2_DATASETS to the data sets, and see `ssql-det check-data`"
                )


@dataclass(frozen=True)
class RunResults:
    """``command`` is what was typed, ``minutes`` what it took this time."""

    plan: Plan
    outcomes: Mapping[str, StepOutcome]
    command: str
    minutes: float

    @functools.cached_property
    def rows(self) -> Mapping[str, list[Row]]:
        """Of the steps that are done, by the name of the part that they are of."""
        made = {step.name: step.makes[0] for kind in ("sweep", "probe") for step in self.done(kind)}
        names = self.plan.rows_of
        return {
            part.name: load_rows(made[name] for name in names[part.name] if name in made) for part in self.plan.parts
        }

    @functools.cached_property
    def tables(self) -> Mapping[int, Comparison]:
        """By number, those that were asked for."""
        parts_of = {number: self.parts_of(number) for number in dict.fromkeys(part.table for part in self.plan.parts)}
        return {
            number: compare_with_published(
                number, [row for part in parts for row in self.rows[part.name]], dataset=parts[0].dataset
            )
            for number, parts in parts_of.items()
        }

    def parts_of(self, number: int) -> list[Experiment]:
        """What fills a table: one part, or one for each of its networks."""
        return [part for part in self.plan.parts if part.table == number]

    def done(self, kind: str) -> Iterator[Step]:
        for step in self.plan.steps:
            if step.kind == kind and step.name in self.outcomes and self.outcomes[step.name].state == DONE:
                yield step


def sum_minutes_by_kind(of: RunResults) -> tuple[tuple[str, str, str], ...]:
    kinds = dict.fromkeys(step.kind for step in of.plan.steps)
    seconds = {kind: [of.outcomes[step.name].seconds for step in of.done(kind)] for kind in kinds}
    seconds["all"] = [each for of_kind in seconds.values() for each in of_kind]
    return tuple((kind, str(len(each)), f"{sum(each) / 60:.1f}") for kind, each in seconds.items())


def format_commands(plan: Plan) -> str:
    """The plan as lines for a shell."""
    head = f"export DETECTRON2_DATASETS={shlex.quote(str(plan.data))}"
    one_thread = "" if plan.choices.on_gpu else " OMP_NUM_THREADS=1"  # as here: so that sums are rounded alike
    return "\n".join([head + one_thread, *(step.command for step in plan.steps)])
