"""A real run on little toy data: all rows exist, finished steps are cached, and kills change no number."""

import json
import random
import re
import shutil
import time
from dataclasses import replace

import pytest
from support.report.pages import TagParser
from support.reproduce.plans import BUDGET, ROOT, WIDTHS, build_plan, find_processes, reproduce_arguments

from ssql_det.core import rows
from ssql_det.report.published import load_published_table

pytestmark = pytest.mark.slow

METHODS = {"random init.": "random init.", "SSQL": "SSQL (ours)"}  # in rows and in tables
PROBES = {"table8-d-0": "(d)", "byol-0": "BYOL", "ssql-0": "SSQL"}  # folders, and methods in rows
ALL = ("--table", "6", "7", "8", "12", "--methods", *METHODS, "(d)", "BYOL")
ONE_OF_EACH = ("--table", "6", "12", "--methods", "SSQL", "BYOL")
TABLES = {"c4": (6, "toy_voc_2007_test"), "fpn": (7, "toy_coco_2017_val")}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder in which every run is made: rows name it, so they can only be compared if it is the same."""
    return tmp_path_factory.mktemp("runs") / "mini"


@pytest.fixture(scope="module")
def reproduce(in_process, tmp_path_factory):
    """Runs the command; its output, and how it ended."""

    def run(out, *arguments, exit_code=0, **how):
        log = tmp_path_factory.mktemp("log") / "log.txt"
        ended = in_process(reproduce_arguments(out, *arguments), log, folder=ROOT, **how)
        output = log.read_text() if log.exists() else ""  # it may be killed before it writes
        assert ended["status"] == exit_code or how, output
        assert "Traceback" not in output
        return output, ended

    return run


@pytest.fixture(scope="module")
def complete_run(reproduce, run_folder):
    """A complete run, probes of two widths first, moved away from where it was made."""
    reproduce(run_folder, "--table", "12", "--methods", "BYOL", "--bits", "FP,2w4a")
    output, _ = reproduce(run_folder, *ALL)
    assert output.count(": cached") == 2  # data and a pretraining; its probe has more widths to do
    return run_folder.rename(run_folder.with_name("complete"))


def read_measurements(out, kind):
    """The rows of sweeps or probes by folder and bit-width, without when and how long."""
    measurements = {}
    for path in sorted(out.glob(f"{kind}/*/results.jsonl")):
        for row in rows.read_rows(path):
            assert (path.parent.name, row.bits) not in measurements
            measurements[path.parent.name, row.bits] = replace(row, seconds=0.0, time="")
    return measurements


def test_there_is_a_row_of_each_method_detector_and_width(complete_run):
    sweeps = read_measurements(complete_run, "sweeps")
    assert {
        (row.method, name.split("-")[0], bits, row.dataset, row.scope, row.seed) for (name, bits), row in sweeps.items()
    } == {
        (method, detector, bits, TABLES[detector][1], "all", 0)
        for method in METHODS
        for detector in TABLES
        for bits in WIDTHS
    }
    assert len(sweeps) == 24
    assert all(0 <= row.metrics["bbox/AP"] <= 100 for row in sweeps.values())


def test_there_is_a_row_of_each_probe_and_width(complete_run):
    probes = read_measurements(complete_run, "probes")
    assert {name: row.method for (name, _), row in probes.items()} == PROBES
    assert len(probes) == 3 * 8
    assert all(0 <= row.metrics["linear/top1"] <= 100 for row in probes.values())


@pytest.mark.parametrize("detector", TABLES)
def test_a_table_holds_the_rows_beside_the_published_figures(detector, complete_run):
    number, dataset = TABLES[detector]
    text = (complete_run / f"tables/table{number}.md").read_text()
    assert (complete_run / f"tables/table{number}.csv").read_text().count("\n") > len(WIDTHS) * len(METHODS)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    header, *body = lines[: next(index for index, line in enumerate(lines) if line[:1] == ["method"] and index)]
    measured = {(line[0], line[1]): line for line in body}
    assert dataset in text
    columns = {
        metric.removesuffix(" published"): column for column, metric in enumerate(header) if " published" in metric
    }
    assert set(columns) == {"AP", "AP50", "AP75"}
    for (name, bits), row in read_measurements(complete_run, "sweeps").items():
        if name.startswith(detector):
            line = measured[METHODS[row.method], bits]
            for metric, column in columns.items():
                assert line[column + 1] == f"{row.metrics[f'bbox/{metric}']:.1f}"
                assert line[column + 2] == "-"  # not comparable
    assert load_published_table(number).citation in text


def test_the_report_holds_the_rows_the_curves_and_the_detections(complete_run):
    page = TagParser((complete_run / "report/index.html").read_text())
    cells = {text.strip() for text in page.texts}
    assert cells >= {*METHODS.values(), *WIDTHS}
    assert len(page.all("img")) == 8 * (1 + len(WIDTHS)) + 3  # annotated and at each width, and maps of features
    assert all(src.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for src in page.values("src"))
    assert (
        len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 5
    )  # boxes twice, masks, two tables of probes
    text = (complete_run / "report/report.md").read_text()
    assert "What is missing" not in text
    assert "These are toy data" in text
    referred = set(re.findall(r"\]\(([\w.-]+\.(?:jpg|png|svg))\)", text))
    assert referred == {path.name for path in (complete_run / "report").iterdir()} - {"report.md", "index.html"}
    plan = build_plan("mini", budget=BUDGET, tables=(6, 7, 8, 12), methods=(*METHODS, "(d)", "BYOL"))
    for step in plan.steps:
        assert step.command.replace("runs/x", str(complete_run.with_name("mini"))) in text


def test_all_of_a_backbone_is_loaded(complete_run):
    for name in ("c4-ssql-0", "fpn-ssql-0"):
        coverage = json.loads((complete_run / f"detectors/{name}/coverage.json").read_text())
        assert coverage["percent"] == 100
        assert coverage["used"]


def test_once_more_nothing_is_done(complete_run, reproduce):
    """Although the folder was moved."""
    files = {
        path: path.read_bytes() for path in complete_run.rglob("*") if path.is_file() and path.parent.name != "report"
    }
    output, ended = reproduce(complete_run, *ALL)
    assert output.count(": cached") == 21
    assert ": started" not in output
    assert {path: path.read_bytes() for path in files} == files
    assert ended["cpu_seconds"] < 20


def test_the_report_holds_the_probes_where_they_belong(complete_run):
    page = TagParser((complete_run / "report/index.html").read_text())
    cells = {text.strip() for text in page.texts}
    assert {"narrow ResNet · (d)", "narrow ResNet · BYOL"} <= cells
    top1 = read_measurements(complete_run, "probes")["table8-d-0", "2w4a"].metrics["linear/top1"]
    assert any(
        line.startswith("| narrow ResNet · (d) | measured |") and f" {top1:.1f} |" in line
        for line in (complete_run / "report/report.md").read_text().splitlines()
    )


def test_kills_change_no_number(run_folder, complete_run, reproduce):
    """After a checkpoint, in the middle of a write, in a training, after rows; and at a random moment."""
    seconds = random.SystemRandom().uniform(2, 10)
    events = {
        "the first checkpoint": {"file": run_folder / "pretrain/byol-0/checkpoint.pth", "lines": 0},
        "a write": {"pattern": f"{run_folder}/pretrain/byol-0/.checkpoint.pth.*.tmp", "size": 0},
        "a detector": {"file": run_folder / "detectors/c4-ssql-0/last_checkpoint", "lines": 0},
        "a row of a probe": {"file": run_folder / "probes/byol-0/results.jsonl", "lines": 1},
        "a row of a sweep": {"file": run_folder / "sweeps/c4-ssql-0/results.jsonl", "lines": 1},
        "a moment": {"seconds": seconds},  # last: it may go past any of the others
    }
    killed = set()
    for name, event in events.items():
        _, ended = reproduce(run_folder, *ONE_OF_EACH, **event)
        killed |= {name} if ended["status"] == -9 else set()
        time.sleep(1)
        assert not find_processes(run_folder)
    assert killed >= events.keys() - {"a write", "a moment"}
    reproduce(run_folder, *ONE_OF_EACH)
    reason = f"killed at {sorted(killed)}, {seconds} s"
    for kind, name in (("sweeps", "c4-ssql-0"), ("probes", "byol-0")):
        expected = {key: row for key, row in read_measurements(complete_run, kind).items() if key[0] == name}
        assert read_measurements(run_folder, kind) == expected, reason
    quantization = "sweeps/c4-ssql-0/quantization.safetensors"
    assert (run_folder / quantization).read_bytes() == (complete_run / quantization).read_bytes()
    assert not list(run_folder.rglob(".*")), reason


def test_a_failed_step_is_reported_and_the_others_are_done(complete_run, reproduce, tmp_path):
    """After a complete run: the rows of random weights are kept, those of the new backbone are missing."""
    out, bad = tmp_path / "out", tmp_path / "thesis.pth"
    shutil.copytree(complete_run, out)
    bad.write_text("This is no checkpoint.")
    options = ("--table", "6", "--methods", *METHODS, "--checkpoint", f"SSQL={bad}")
    output, _ = reproduce(out, *options, exit_code=3)
    assert re.findall(r"(\S+): cached", output) == [
        *("data", "train-c4-random-init-0", "sweep-c4-random-init-0", "predict-c4-random-init-0")
    ]
    (reason,) = re.findall(r"convert-ssql: failed: (.*) \(log: ", output)
    assert str(bad) in reason
    page = TagParser((out / "report/index.html").read_text())
    assert {"What is missing", "convert-ssql", "failed", "train-c4-ssql-0", "skipped", reason} <= set(page.texts)
    assert "| random init. | measured |" in (out / "report/report.md").read_text()
    assert "| SSQL (ours) | measured |" not in (out / "report/report.md").read_text()
