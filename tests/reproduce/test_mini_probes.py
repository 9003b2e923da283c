"""Real probes on little toy data: tables share runs, bit-widths are added, and kills change no number."""

import random
import time
from dataclasses import replace

import pytest
from support.kills import after, being_written, kill_at, written
from support.report.pages import TagParser
from support.reproduce.plans import find_processes, run_reproduce, start_reproduce

from ssql_det.core import rows

FEW = ("--table", "8", "12", "--methods", "(d)", "BYOL")
PROBES = {"table8-d-0": "(d)", "byol-0": "BYOL"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "mini"


@pytest.fixture(scope="module")
def complete_run(run_folder):
    """A complete run, first at few bit-widths and then at all, moved away afterwards."""
    run_reproduce(run_folder, *FEW, "--bits", "FP,2w4a")
    output = run_reproduce(run_folder, *FEW)
    assert output.count(": cached") == 4  # data, two pretrainings, the analysis; probes resume
    return run_folder.rename(run_folder.with_name("complete"))


def read_rows_by_name(out):
    return {
        (path.parent.name, row.bits): replace(row, seconds=0.0, time="")
        for path in out.glob("probes/*/results.jsonl")
        for row in rows.read_rows(path)
    }


def test_there_is_a_row_of_each_method_and_bit_width(complete_run):
    rows_by_name = read_rows_by_name(complete_run)
    assert {name: row.method for (name, _), row in rows_by_name.items()} == PROBES
    assert (
        len(rows_by_name)
        == 2 * 8
        == sum(len(path.read_text().splitlines()) for path in complete_run.glob("probes/*/*.jsonl"))
    )
    assert all(0 <= row.metrics["linear/top1"] <= 100 for row in rows_by_name.values())


def test_the_report_has_the_rows_in_their_tables(complete_run):
    page = TagParser((complete_run / "report/index.html").read_text())
    cells = {text.strip() for text in page.texts}
    assert {"narrow ResNet · (d)", "narrow ResNet · BYOL", "What bits cost a backbone: preset mini"} <= cells
    value = read_rows_by_name(complete_run)["table8-d-0", "2w4a"].metrics["linear/top1"]
    assert any(
        line.startswith("| narrow ResNet · (d) | measured |") and f" {value:.1f} |" in line
        for line in (complete_run / "report/report.md").read_text().splitlines()
    )


def test_kills_change_no_number(run_folder, complete_run):
    """After checkpoints, during a write, after the first row, and at a random moment."""
    byol, rows_of_d = run_folder / "pretrain/byol-0/checkpoint.pth", run_folder / "probes/table8-d-0/results.jsonl"
    seconds = random.SystemRandom().uniform(2, 10)
    events = {
        "the first checkpoint": written(byol, 1),
        "two checkpoints later": written(byol, 3),
        "a write": being_written(byol),
        "a row": rows_of_d.exists,
        "a moment": after(seconds),  # last: it may go past any of the others
    }
    killed = {name for name, event in events.items() if run_until_killed(run_folder, event)}
    assert killed >= {"the first checkpoint", "two checkpoints later", "a row"}
    run_reproduce(run_folder, *FEW)
    assert read_rows_by_name(run_folder) == read_rows_by_name(complete_run), f"killed at {sorted(killed)}, {seconds} s"


def run_until_killed(run_folder, event):
    was_running = kill_at(start_reproduce(run_folder, *FEW), event)
    time.sleep(1)
    assert not find_processes(run_folder)
    return was_running
