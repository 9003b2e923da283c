"""From nothing to the tables: toy data or the real ones, pretraining, transfer, sweeps, and a report to look at.

First the plan, then its steps side by side. Started again, it goes on where it was; what is done and still holds is
not done again. Exit code 3 when a step failed: the others are there, the report says which is missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import positive_int
from ssql_det.core.errors import EXIT_INCOMPLETE, UserError

if TYPE_CHECKING:
    from ssql_det.reproduce.plan import Plan, RunResults
    from ssql_det.reproduce.presets import Options

_MOST_SEEDS = 1000
HELP = "the tables, from nothing: one command for all of it"
EXAMPLES = (
    "ssql-det reproduce --preset mini",
    "ssql-det reproduce --preset paper --table 6 --methods SSQL --checkpoint SSQL=ssql_r18.pth --dry-run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        metavar="mini|small|paper",
        default="mini",
        help="mini: two CPU cores, minutes; small: a GPU, half an hour; paper: the published recipes "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--table",
        type=int,
        nargs="+",
        metavar="N",
        help="6: Faster R-CNN C4; 7: Mask R-CNN FPN (default: these two); linear probes: 1, 12: methods; 8: ablation; "
        "3: ImageNet, of the paper's preset alone",
    )
    parser.add_argument("--methods", nargs="+", default=[], help="as tables print them, such as SSQL (default: all)")
    parser.add_argument("--bits", default="", help="FP, 8 or 2w4a, comma-separated (default: the preset's)")
    parser.add_argument("--seeds", type=positive_int, help="how many (default: the preset's)")
    parser.add_argument(
        "--checkpoint",
        metavar="METHOD=FILE",
        action="append",
        default=[],
        help="a backbone that is there already, in any format; may be repeated",
    )
    for data, folder, use in (
        ("imagenet", "datasets/imagenet", "what the paper's preset pretrains on"),
        ("cifar10", "datasets", "where the paper's preset finds cifar-10-batches-py"),
    ):
        text = f"{use} (default: %(default)s)"
        parser.add_argument(f"--{data}", metavar="DIR", type=Path, default=Path(folder), help=text)
    parser.add_argument("--out", metavar="DIR", help="where everything goes (default: runs/<preset>)")
    parser.add_argument("--jobs", type=positive_int, help="steps at a time (default: one a CPU core, or one on a GPU)")
    parser.add_argument("--lanes", dest="jobs", type=positive_int, help=argparse.SUPPRESS)  # its former name
    parser.add_argument(
        "--num-gpus", type=positive_int, default=1, help="for each step of training or sweeping (default: %(default)s)"
    )
    parser.add_argument(
        "--budget", type=float, default=1.0, help="share of toy data and training, as 0.05 to try it (default: 1)"
    )
    parser.add_argument("--dry-run", action="store_true", help="the plan alone: steps, minutes, disk, commands")


def run(options: argparse.Namespace) -> None:
    import torch

    from ssql_det.core.console import print_next, set_up_logging
    from ssql_det.reproduce.plan import RunResults, check_plan, make_plan
    from ssql_det.reproduce.presets import get_preset
    from ssql_det.reproduce.runner import DONE, make_environment, run_steps

    set_up_logging()
    plan = make_plan(get_preset(options.preset), _choices(options, torch.cuda.is_available()))
    jobs = options.jobs or (1 if plan.choices.on_gpu else os.cpu_count() or 1)
    if not options.dry_run:
        check_plan(plan)
    _print_plan(plan, jobs)
    if options.dry_run:
        print_next(*(word for word in sys.argv[1:] if word != "--dry-run"))
        return
    begun = time.monotonic()
    program = [sys.executable, "-m", "ssql_det.cli.child"]
    outcomes = run_steps(plan.steps, plan.out, jobs, program, make_environment(plan.data, plan.choices.on_gpu))
    typed = shlex.join(["ssql-det", *sys.argv[1:]])
    found = RunResults(plan, outcomes, typed, (time.monotonic() - begun) / 60)
    _write(found)
    if any(outcome.state != DONE for outcome in outcomes.values()):
        raise SystemExit(EXIT_INCOMPLETE)


def _choices(options: argparse.Namespace, on_gpu: bool) -> Options:
    from ssql_det.quant import parse_widths
    from ssql_det.reproduce.presets import Options

    if options.bits:
        parse_widths(options.bits)
    if options.seeds is not None and options.seeds > _MOST_SEEDS:
        raise UserError(f"--seeds is up to {_MOST_SEEDS}, got {options.seeds}: each is a training of its own")
    if not 0 < options.budget <= 1:
        raise UserError(f"--budget is a share, above 0 and up to 1; got {options.budget}")
    checkpoints = []
    for given in options.checkpoint:
        method, equals, file = given.partition("=")
        if not equals or not file:
            raise UserError(f"--checkpoint is METHOD=FILE, as SSQL=ssql.pth; got {given!r}")
        checkpoints.append((method, file))
    tables = {} if options.table is None else {"tables": tuple(dict.fromkeys(options.table))}
    out = Path(os.path.expanduser(options.out or f"runs/{options.preset}"))
    if not out.name:
        raise UserError(f"--out {out} is no folder of its own; name one, as runs/mini")
    return Options(
        out=out,
        methods=tuple(options.methods),
        bits=options.bits,
        seeds=options.seeds,
        checkpoints=tuple(checkpoints),
        budget=options.budget,
        num_gpus=options.num_gpus,
        imagenet=Path(os.path.expanduser(options.imagenet)),
        cifar10=Path(os.path.expanduser(options.cifar10)),
        on_gpu=on_gpu,
        **tables,
    )


def _print_plan(plan: Plan, jobs: int) -> None:
    from ssql_det.core.console import print_table
    from ssql_det.reproduce.plan import format_commands
    from ssql_det.reproduce.step_cache import estimate_makespan

    print(f"by hand it would be:\n\n{format_commands(plan)}\n")
    rows = [(step.name, _minutes(step.minutes), f"{step.megabytes:.0f}") for step in plan.steps]
    print_table(("step", "time", "MB"), rows, f"preset {plan.preset.name}, in {plan.out}")
    megabytes = sum(step.megabytes for step in plan.steps)
    print(
        f"{len(plan.steps)} steps, about {_minutes(estimate_makespan(plan.steps, jobs))} with {jobs} at a time"
        f"{'' if plan.preset.is_measured else ' (a guess: it was not measured)'}, {megabytes / 1000:.1f} GB of disk"
    )
    if plan.preset.is_for_gpu and not plan.choices.on_gpu:
        print("there is no GPU here, and these are a GPU's times: on this machine it takes many times as long")
    for reason in plan.left_out:
        print(f"left out: {reason}")


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


def _write(found: RunResults) -> None:
    """Tables and report below the run's folder, and on the terminal what a reader asks first."""
    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.reproduce.plan import sum_minutes_by_kind
    from ssql_det.reproduce.report_page import write_report, write_tables

    print_table(
        ("steps", "count", "minutes of work"), sum_minutes_by_kind(found), f"{found.minutes:.1f} minutes in all"
    )
    if not any(found.rows.values()):
        print("nothing is measured yet, so there is nothing to report")
        return
    for table in write_tables(found):
        print_table(table.header, table.rows, table.caption)
    page = write_report(found)
    print(f"wrote {page.with_name('report.md')}")
    preset, choices = found.plan.preset, found.plan.choices
    seeds = (choices.seeds or preset.seeds) + 2
    tables = ("--table", *choices.tables) if choices.tables else ()
    print_outcome(page, "reproduce", "--preset", preset.name, *tables, "--seeds", seeds, "--out", found.plan.out)
