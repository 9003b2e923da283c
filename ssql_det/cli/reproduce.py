"""Reproduce the published tables from nothing: toy or real data, pretraining, transfer, sweeps, and a report.

Prints the plan, then runs its steps as parallel jobs. The same command continues an interrupted run; steps whose inputs
have not changed are cached. Exit code 3 if a step failed: the report lists what is missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.cli.arguments import positive_int, worker_int
from ssql_det.core.errors import EXIT_INCOMPLETE, UserError

if TYPE_CHECKING:
    from ssql_det.reproduce.plan import Plan, RunResults
    from ssql_det.reproduce.presets import Options

_MAX_SEEDS = 100
HELP = "reproduce the published tables from nothing, with one command"
EXAMPLES = (
    "ssql-det reproduce --preset mini",
    "ssql-det reproduce --preset paper --table 6 --methods SSQL --checkpoint SSQL=ssql_r18.pth --dry-run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
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
        "3: ImageNet, of the preset paper only",
    )
    parser.add_argument("--methods", nargs="+", default=[], help="as tables print them, such as SSQL (default: all)")
    parser.add_argument("--bits", default="", help="bit-widths such as FP,8,2w4a (default: the preset's)")
    parser.add_argument("--seeds", type=positive_int, help="number of seeds (default: the preset's)")
    parser.add_argument(
        "--checkpoint",
        metavar="METHOD=FILE",
        action="append",
        default=[],
        help="use this backbone, in any format, instead of pretraining one; may be repeated",
    )
    for dataset, folder, use in (
        ("imagenet", "datasets/imagenet", "folder of ImageNet, for the preset paper"),
        ("cifar10", "datasets", "folder that has cifar-10-batches-py in it, for the preset paper"),
    ):
        text = f"{use} (default: %(default)s)"
        parser.add_argument(f"--{dataset}", metavar="DIR", type=Path, default=Path(folder), help=text)
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/<preset>)")
    parser.add_argument(
        "--jobs", type=worker_int, help="steps that run at the same time (default: one per CPU core, or one on a GPU)"
    )
    parser.add_argument(  # the option's name in version 0.1
        "--lanes", dest="jobs", type=worker_int, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--num-gpus", type=worker_int, default=1, help="GPUs of each training and sweep (default: %(default)s)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=1.0,
        help="share of toy data and training, such as 0.05 for a trial (default: 1)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the plan: steps, minutes, disk, commands")


def run(options: argparse.Namespace) -> None:
    import torch

    from ssql_det.cli.main import main
    from ssql_det.core.console import print_next, set_up_logging
    from ssql_det.reproduce.plan import RunResults, check_plan, make_plan
    from ssql_det.reproduce.presets import get_preset
    from ssql_det.reproduce.runner import DONE, make_environment, run_steps

    set_up_logging()
    plan = make_plan(get_preset(options.preset), _make_options(options, torch.cuda.is_available()))
    has_gpu = plan.options.has_gpu
    jobs = options.jobs or (1 if has_gpu else os.cpu_count() or 1)
    if not options.dry_run:
        check_plan(plan)
    _print_plan(plan, jobs)
    if options.dry_run:
        print_next(*(word for word in sys.argv[1:] if word != "--dry-run"))
        return
    start = time.monotonic()
    outcomes = run_steps(plan.steps, plan.out, jobs, main, make_environment(plan.datasets_root, has_gpu))
    command = shlex.join(["ssql-det", *sys.argv[1:]])
    _write_results(RunResults(plan, outcomes, command, (time.monotonic() - start) / 60))
    if any(outcome.state != DONE for outcome in outcomes.values()):
        raise SystemExit(EXIT_INCOMPLETE)


def _make_options(options: argparse.Namespace, has_gpu: bool) -> Options:
    from ssql_det.quant import parse_bit_widths
    from ssql_det.reproduce.presets import Options

    if options.bits:
        parse_bit_widths(options.bits)
    if options.seeds is not None and options.seeds > _MAX_SEEDS:
        raise UserError(f"--seeds must be at most {_MAX_SEEDS}, got {options.seeds}: each one is a training")
    if not 0 < options.budget <= 1:
        raise UserError(f"--budget must be above 0 and at most 1, got {options.budget}")
    checkpoints = []
    for pair in options.checkpoint:
        method, equals, file = pair.partition("=")
        if not equals or not file:
            raise UserError(f"--checkpoint must be METHOD=FILE, such as SSQL=ssql.pth; got {pair!r}")
        checkpoints.append((method, file))
    tables = {} if options.table is None else {"tables": tuple(dict.fromkeys(options.table))}
    out = Path(os.path.expanduser(options.out or f"runs/{options.preset}"))
    if not out.name:
        raise UserError(f"--out must be a folder for this run alone, such as runs/mini; got {out}")
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
        has_gpu=has_gpu,
        **tables,
    )


def _print_plan(plan: Plan, jobs: int) -> None:
    from ssql_det.core.console import print_table
    from ssql_det.reproduce.plan import format_commands
    from ssql_det.reproduce.steps import estimate_makespan

    print(f"the same as single commands:\n\n{format_commands(plan)}\n")
    rows = [(step.name, _format_minutes(step.minutes), f"{step.megabytes:.0f}") for step in plan.steps]
    print_table(("step", "time", "MB"), rows, f"preset {plan.preset.name}, in {plan.out}")
    time_text = _format_minutes(estimate_makespan(plan.steps, jobs))
    guess = "" if plan.preset.has_measured_minutes else " (a guess, not measured)"
    gigabytes = sum(step.megabytes for step in plan.steps) / 1000
    print(f"{len(plan.steps)} steps, about {time_text} with {jobs} at a time{guess}, {gigabytes:.1f} GB of disk")
    if plan.preset.is_for_gpu and not plan.options.has_gpu:
        print("no GPU was found; the times are for a GPU, and this machine takes many times as long")
    for reason in plan.left_out:
        print(f"left out: {reason}")


def _format_minutes(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


def _write_results(results: RunResults) -> None:
    """Write the tables and the report, and print a summary."""
    from ssql_det.core.console import print_outcome, print_table
    from ssql_det.reproduce.plan import sum_minutes_by_kind
    from ssql_det.reproduce.report_page import write_report, write_tables

    caption = f"{results.minutes:.1f} minutes in all"
    print_table(("steps", "count", "minutes of work"), sum_minutes_by_kind(results), caption)
    if not any(results.rows.values()):
        print("nothing was measured, so there is no report")
        return
    for table in write_tables(results):
        print_table(table.header, table.rows, table.caption)
    page = write_report(results)
    print(f"wrote {page.with_name('report.md')}")
    preset, options = results.plan.preset, results.plan.options
    more_seeds = (options.seeds or preset.seeds) + 2
    tables = ("--table", *options.tables) if options.tables else ()
    print_outcome(page, "reproduce", "--preset", preset.name, *tables, "--seeds", more_seeds, "--out", options.out)
