"""The real thing on few toy data: all rows are there, nothing is done twice, and kills change no number."""

import json
import random
import re
import resource
import shutil
import time
from dataclasses import asdict

import pytest
from support.kills import after, kill_at, written
from support.report.pages import TagParser
from support.reproduce.plans import WIDTHS, build_plan, find_processes, run_reproduce, start_reproduce

from ssql_det.core import rows
from ssql_det.report.published import load_published_table

METHODS = {"random init.": "random init.", "SimSiam": "SimSiam", "SSQL": "SSQL (ours)"}  # in rows and in tables
FEW = ("--table", "6", "--methods", "SSQL", "random init.")
TABLES = {"c4": (6, "toy_voc_2007_test"), "fpn": (7, "toy_coco_2017_val")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the folder of a run is while it is made: of every run here the same, so that they may be compared."""
    return tmp_path_factory.mktemp("runs") / "mini"


@pytest.fixture(scope="module")
def whole(place):
    """A run to its end, moved away from where it was made."""
    run_reproduce(place)
    return place.rename(place.with_name("whole"))


def found(out):
    """Each row by detector and bit-width, without when and how long."""
    kept = {}
    for path in sorted(out.glob("sweeps/*/results.jsonl")):
        for row in rows.read_rows(path):
            assert (path.parent.name, row.bits) not in kept
            kept[path.parent.name, row.bits] = {**asdict(row), "seconds": None, "time": None}
    return kept


def test_there_is_a_row_of_each_method_detector_and_bit_width(whole):
    assert {
        (row["method"], name.split("-")[0], bits, row["dataset"], row["scope"], row["seed"])
        for (name, bits), row in found(whole).items()
    } == {
        (method, detector, bits, TABLES[detector][1], "all", 0)
        for method in METHODS
        for detector in TABLES
        for bits in WIDTHS
    }
    assert len(found(whole)) == 36
    assert all(0 <= row["metrics"]["bbox/AP"] <= 100 for row in found(whole).values())


@pytest.mark.parametrize("detector", TABLES)
def test_a_table_has_the_rows_beside_the_published_values(detector, whole):
    number, dataset = TABLES[detector]
    text = (whole / f"tables/table{number}.md").read_text()
    assert (whole / f"tables/table{number}.csv").read_text().count("\n") > len(WIDTHS) * len(METHODS)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    header, *body = lines[: next(place for place, line in enumerate(lines) if line[:1] == ["method"] and place)]
    measured = {(line[0], line[1]): line for line in body}
    assert dataset in text
    columns = {
        metric.removesuffix(" published"): place for place, metric in enumerate(header) if " published" in metric
    }
    assert set(columns) == {"AP", "AP50", "AP75"}
    for (name, bits), row in found(whole).items():
        if name.startswith(detector):
            line = measured[METHODS[row["method"]], bits]
            for metric, place in columns.items():
                assert line[place + 1] == f"{row['metrics'][f'bbox/{metric}']:.1f}"
                assert line[place + 2] == "-"  # not comparable
    assert load_published_table(number).source in text


def test_the_report_has_the_rows_the_curves_and_the_detections(whole):
    page = TagParser((whole / "report/index.html").read_text())
    cells = {text.strip() for text in page.texts}
    assert cells >= {*METHODS.values(), *WIDTHS}
    assert len(page.all("img")) == 12 + 2  # detections, and maps of features
    assert all(src.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for src in page.values("src"))
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 3  # boxes twice, masks
    text = (whole / "report/report.md").read_text()
    assert "What is missing" not in text
    assert "These are toy data" in text
    referred = set(re.findall(r"\]\(([\w.-]+\.(?:jpg|png|svg))\)", text))
    assert referred == {path.name for path in (whole / "report").iterdir()} - {"report.md", "index.html"}
    for step in build_plan("mini", budget=0.02).steps:  # told as they were run
        assert step.command.replace("runs/x", str(whole.with_name("mini"))) in text


def test_all_weights_of_a_backbone_are_loaded(whole):
    for name in ("c4-ssql-0", "fpn-ssql-0", "c4-simsiam-0", "fpn-simsiam-0"):
        coverage = json.loads((whole / f"detectors/{name}/coverage.json").read_text())
        assert coverage["percent"] == 100
        assert coverage["used"]


def test_a_second_run_is_cached(whole):
    """Although the folder was moved."""
    files = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file() and path.parent.name != "report"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = run_reproduce(whole)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert said.count(": cached") == 24
    assert ": started" not in said
    assert {path: path.read_bytes() for path in files} == files
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20


def test_kills_change_no_number(place, whole):
    """In a pretraining, in a training, behind a row; and at a moment that nobody chose."""
    seconds = random.SystemRandom().uniform(2, 10)
    events = {
        "a checkpoint": written(place / "pretrain/ssql-0/checkpoint.pth", 2),
        "a detector": (place / "detectors/c4-ssql-0/last_checkpoint").exists,
        "a row": (place / "sweeps/c4-random-init-0/results.jsonl").exists,
        "a moment": after(seconds),  # last: it may go past any of the others
    }
    for name, event in events.items():
        was_running = kill_at(start_reproduce(place, *FEW), event)  # the steps hold no pipe of its
        assert was_running or name == "a moment", name
        time.sleep(1)
        assert not find_processes(place), name
    run_reproduce(place, *FEW)
    ours, theirs = found(place), found(whole)
    names = ("c4-ssql-0", "c4-random-init-0")
    assert ours == {key: row for key, row in theirs.items() if key[0] in names}, f"last killed after {seconds} s"
    for name in names:
        quantization = f"sweeps/{name}/quantization.safetensors"
        assert (place / quantization).read_bytes() == (whole / quantization).read_bytes()
    assert [path.name for path in place.rglob(".*")] == [".lock"], f"last killed after {seconds} s"


def test_a_failed_step_is_reported_and_the_others_are_done(whole, tmp_path):
    """Beside a run that is whole: the rows of random weights are there, those of the new backbone are not."""
    out, bad = tmp_path / "out", tmp_path / "thesis.pth"
    shutil.copytree(whole, out)
    bad.write_text("This is no checkpoint.")
    said = run_reproduce(out, *FEW, "--checkpoint", f"SSQL={bad}", exit_code=3)
    assert re.findall(r"(\S+): cached", said) == [
        *("data", "train-c4-random-init-0", "sweep-c4-random-init-0", "predict-c4-random-init-0")
    ]
    (reason,) = re.findall(r"convert-ssql: failed: (.*) \(log: ", said)
    assert str(bad) in reason
    page = TagParser((out / "report/index.html").read_text())
    assert {"What is missing", "convert-ssql", "failed", "train-c4-ssql-0", "skipped", reason} <= set(page.texts)
    assert "| random init. | measured |" in (out / "report/report.md").read_text()
    assert "| SSQL (ours) | measured |" not in (out / "report/report.md").read_text()
