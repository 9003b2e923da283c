"""Probes for real, on few toy data: rows for tables that share a run, extended, killed, to the same numbers."""

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
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "mini"


@pytest.fixture(scope="module")
def whole(place):
    """A run to its end, of few bits and then of all, moved away from where it was made."""
    run_reproduce(place, *FEW, "--bits", "FP,2w4a")
    said = run_reproduce(place, *FEW)
    assert said.count(": cached") == 4  # data, two pretrainings, the analysis; probes go on
    return place.rename(place.with_name("whole"))


def found(out):
    return {
        (path.parent.name, row.bits): replace(row, seconds=0.0, time="")
        for path in out.glob("probes/*/results.jsonl")
        for row in rows.read_rows(path)
    }


def test_there_is_a_row_of_each_method_and_bit_width(whole):
    probed = found(whole)
    assert {name: row.method for (name, _), row in probed.items()} == PROBES
    assert len(probed) == 2 * 8 == sum(len(path.read_text().splitlines()) for path in whole.glob("probes/*/*.jsonl"))
    assert all(0 <= row.metrics["linear/top1"] <= 100 for row in probed.values())


def test_the_report_has_the_rows_in_their_tables(whole):
    page = TagParser((whole / "report/index.html").read_text())
    cells = {text.strip() for text in page.texts}
    assert {"narrow ResNet · (d)", "narrow ResNet · BYOL", "What bits cost a backbone: preset mini"} <= cells
    figure = found(whole)["table8-d-0", "2w4a"].metrics["linear/top1"]
    assert any(
        line.startswith("| narrow ResNet · (d) | measured |") and f" {figure:.1f} |" in line
        for line in (whole / "report/report.md").read_text().splitlines()
    )


def test_kills_change_no_number(place, whole):
    """After checkpoints, in the middle of a write, after the first row; and at a moment that nobody chose."""
    byol, rows_of_d = place / "pretrain/byol-0/checkpoint.pth", place / "probes/table8-d-0/results.jsonl"
    seconds = random.SystemRandom().uniform(2, 10)
    events = {
        "the first checkpoint": written(byol, 1),
        "two checkpoints later": written(byol, 3),
        "a write": being_written(byol),
        "a row": rows_of_d.exists,
        "a moment": after(seconds),  # last: it may go past any of the others
    }
    killed = {name for name, event in events.items() if killed_in(place, event)}
    assert killed >= {"the first checkpoint", "two checkpoints later", "a row"}
    run_reproduce(place, *FEW)
    assert found(place) == found(whole), f"killed at {sorted(killed)}, {seconds} s"


def killed_in(place, event):
    was_running = kill_at(start_reproduce(place, *FEW), event)
    time.sleep(1)
    assert not find_processes(place)
    return was_running
