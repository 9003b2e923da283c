"""A preset and a user's choices as a plan: which steps there are, in which order, and what is left out."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.report.names import plain_name, published_name
from ssql_det.report.published import published_table
from ssql_det.reproduce.building import LEAST, Builder, Choices, data_sets
from ssql_det.reproduce.presets import RANDOM, Preset, Transfer
from ssql_det.reproduce.step import Step
from ssql_det.toydata.dataset import Settings

_KINDS = ("data", "pretrain", "convert", "train", "sweep", "predict", "analyze")


@dataclass(frozen=True)
class Plan:
    """``left_out``: what a table has and this plan has not, with the reason."""

    preset: Preset
    choices: Choices
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]

    @property
    def out(self) -> Path:
        return self.choices.out

    @property
    def data(self) -> Path:
        """What ``DETECTRON2_DATASETS`` has to say."""
        return self.out / "data" if self.preset.data else data_sets()


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
    files = _files(choices, transfers, wanted)
    preset = dataclasses.replace(
        preset,
        data=preset.data and _scaled(preset.data, choices.budget),
        bits=choices.bits or preset.bits,
        seeds=preset.seeds if choices.seeds is None else choices.seeds,
    )
    builder = Builder(preset, choices, files)
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
    builder.analyze()
    if not builder.steps:
        raise UserError(f"there is nothing to do for {', '.join(wanted)}; give --checkpoint {wanted[0]!r}=FILE")
    # What others wait for first, and of that the longest: so no lane is empty while another works alone.
    steps = sorted(builder.steps.values(), key=lambda step: (_KINDS.index(step.kind), -step.minutes))
    return Plan(preset, choices, tuple(steps), tuple(left_out))


def _files(choices: Choices, transfers: Sequence[Transfer], wanted: Sequence[str]) -> dict[str, str]:
    """The given checkpoints by the printed names of their methods."""
    files: dict[str, str] = {}
    for name, file in choices.checkpoints:
        method = _printed(name, transfers)
        if method == RANDOM:
            raise UserError(f"{method!r} has random weights, so --checkpoint {name}={file} has no place")
        if method in files:
            raise UserError(f"--checkpoint gives {name} two files, {files[method]} and {file}; leave one out")
        if wanted and method not in wanted:
            raise UserError(f"--checkpoint gives {method!r} a file and --methods leaves it out; name it there too")
        files[method] = file
    return files


def _scaled(data: Settings, budget: float) -> Settings:
    counts = {name: max(round(getattr(data, name) * budget), LEAST[name]) for name in ("scenes", "crops")}
    return dataclasses.replace(data, **counts)


def _methods(transfer: Transfer) -> tuple[str, ...]:
    """Those of the published table, then what a preset has beside them."""
    return tuple(dict.fromkeys((*published_table(transfer.table).methods, *transfer.methods)))


def _printed(name: str, transfers: Sequence[Transfer]) -> str:
    known = list(dict.fromkeys(name for each in transfers for name in _methods(each)))
    printed = published_name(name, known)
    if printed is None:
        near = did_you_mean(name, map(plain_name, known))
        raise UserError(f"there is no method {name!r}{near} (known: {', '.join(known)})")
    return printed
