"""The report on a fake run: its values are those of the rows, and the rest is what the steps wrote."""

import contextlib
import io
import itertools
import re
import statistics
from xml.etree import ElementTree

import pytest
from PIL import Image
from support.reproduce.fake_runs import NAMES, ROW_NAMES, check_page, fake_average_precision, find_tables, make_fake_run
from support.reproduce.plans import ROOT, WIDTHS

from ssql_det.analyze.page import read_terms
from ssql_det.core.errors import UserError
from ssql_det.report.blocks import Figure, Heading, Slides
from ssql_det.report.render_html import render_html
from ssql_det.reproduce.report_page import build_report, format_mean, write_report, write_tables
from ssql_det.reproduce.run_details import build_run_details


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Of three seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return make_fake_run(tmp_path_factory.mktemp("small"), "small")


def test_the_report_of_a_complete_run_in_both_formats(small):
    document = build_report(small)
    page, _ = check_page(document)
    assert document.title == "What bits cost a detector: preset small"
    assert [block.text for block in document.blocks if isinstance(block, Heading) and block.level == 2] == [
        "What do low bit-widths cost?",
        *("Faster R-CNN, C4, on toy data, next to Table 6", "Mask R-CNN, FPN, on toy data, next to Table 7"),
        *("Size and cost", "Detections", "Features at low bit-widths", "Loaded weights", "Pretraining"),
        "Run time",
        *("Environment", "Commands"),
    ]
    assert len(page.all("img")) == 2 * 12 + 2  # detections, and maps of features


def test_values_are_means_over_seeds(small):
    document = build_report(small)
    *boxes, masks = (table for table in find_tables(document, "method") if table.header[1] == "values")
    for table, detector in zip(boxes, ("c4", "fpn"), strict=True):
        assert table.header[2:] == WIDTHS
        measured = {row[0]: row[2:] for row in table.rows if row[1] == "measured"}
        assert set(measured) == set(NAMES.values())
        for method, name in NAMES.items():
            for index, cell in enumerate(measured[name]):
                values = [fake_average_precision(detector, method, seed, index) for seed in range(3)]
                assert cell == f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} (3)"
    assert {row[0]: row[2] for row in masks.rows if row[1] == "measured"}["SimSiam"] == "22.2 ± 1.5 (3)"


def test_the_summary_has_the_mean_loss_of_each_seed(small):
    (summary,) = find_tables(build_report(small), "detector")[:1]
    assert summary.header == ("detector", "method", "box AP at FP", "lost at 8w8a", "lost at 4w4a", "lost at 2w4a")
    indices = [WIDTHS.index(bits) for bits in ("8w8a", "4w4a", "2w4a")]
    rows = {row[:2]: row[2:] for row in summary.rows}
    assert len(rows) == 6
    seeds = range(3)
    detectors = {"Faster R-CNN, C4": "c4", "Mask R-CNN, FPN": "fpn"}
    assert list(rows) == list(itertools.product(detectors, ROW_NAMES.values()))
    for (title, detector), (method, name) in itertools.product(detectors.items(), ROW_NAMES.items()):
        full = [fake_average_precision(detector, method, seed, 0) for seed in seeds]
        cells = rows[title, name]
        assert cells[0] == f"{statistics.fmean(full):.1f} ± {statistics.stdev(full):.1f}"
        for cell, index in zip(cells[1:], indices, strict=True):
            losses = [full[seed] - fake_average_precision(detector, method, seed, index) for seed in seeds]
            assert cell == f"{statistics.fmean(losses):.1f} ± {statistics.stdev(losses):.1f}"


def test_a_loss_of_zero_has_no_sign():
    assert [format_mean(losses) for losses in ([-0.04], [-0.06], [0.06], [])] == ["0.0", "-0.1", "0.1", "-"]


def test_details_are_those_of_the_steps(small):
    document = build_report(small)
    (loaded,) = [table for table in find_tables(document, "detector") if "tensors" in table.header]
    rows = {row[0]: row[1:] for row in loaded.rows}
    assert rows["c4-ssql-2"] == ("100.0 %", "20", "2: of the method's head")
    assert rows["fpn-random-init-0"] == ("random weights", "-", "-")
    assert len(rows) == 18
    (runs,) = find_tables(document, "run")
    assert runs.rows[0][1:] == ("150", "-0.9877", "0.87", "50.0", "-")
    assert {row[0] for row in runs.rows} == {f"{name}-{seed}" for name in ("simsiam", "ssql") for seed in range(3)}
    (minutes,) = find_tables(document, "steps")
    assert {row[0]: row[1:] for row in minutes.rows} == {
        "data": ("1", "0.1"),
        "pretrain": ("6", "0.6"),
        "convert": ("6", "0.6"),
        "train": ("18", "1.8"),
        "sweep": ("18", "18.0"),
        "predict": ("6", "0.6"),
        "analyze": ("1", "0.1"),
        "all": ("56", "21.8"),
    }
    costs = find_tables(document, "Faster R-CNN, C4")[0]
    assert costs.rows == (
        ("MB", *(f"{8 / number:.2f}" for number in range(1, 7))),
        ("Gbit-ops", *(f"{616 / number:.1f}" for number in range(1, 7))),
    )


def test_the_terms_and_maps_are_those_of_the_analysis(small):
    document = build_report(small)
    backbone, loss = (table for table in find_tables(document, "checkpoint") if "term" in table.header)
    assert backbone.header == ("checkpoint", "spread", "term", *("FP", "8w8a", "2w4a"))
    (step,) = small.list_done("analyze")
    of = read_terms(step.outputs[0].read_text())["loss"]["ssql-0"].terms
    assert next(row for row in loss.rows if row[0] == "ssql-0")[3:] == tuple(f"{of[b].quantization:.4f}" for b in of)
    maps = [block for block in document.blocks if isinstance(block, Figure) and block.name.startswith("tsne_")]
    assert {block.name: block.content for block in maps} == {path.name: path.read_bytes() for path in step.outputs[1:]}


def test_the_panels_of_a_picture_are_slides(small):
    slides = [block for block in build_report(small).blocks if isinstance(block, Slides)]
    assert [[figure.caption for figure in each.figures] for each in slides] == [["annotated", "FP"]] * 12
    for figure in itertools.chain.from_iterable(each.figures for each in slides):
        content = Image.open(io.BytesIO(figure.content))
        assert content.size == (400, 90)
        red, green, blue = content.convert("RGB").getpixel((200, 30))
        assert max(abs(red - 0), abs(green - 114), abs(blue - 178)) < 6  # as they were, not blue for red


def test_the_written_files_are_those_of_the_document(small):
    overviews = list(write_tables(small))
    assert [table.caption.split(":")[0] for table in overviews] == ["Table 6, box AP", "Table 7, box AP"]
    page = write_report(small)
    assert page.read_text() == render_html(build_report(small))
    referred = set(re.findall(r"\]\(([\w.-]+\.(?:jpg|png|svg))\)", (page.parent / "report.md").read_text()))
    assert referred == {each.name for each in page.parent.iterdir()} - {"report.md", "index.html"}
    for number in (6, 7):
        path = small.plan.out / f"tables/table{number}"
        assert "| SSQL (ours) | 4w4a |" in path.with_suffix(".md").read_text()
        assert ",4w4a," in path.with_suffix(".csv").read_text()
    for chart in page.parent.glob("*.svg"):
        ElementTree.parse(chart)


@pytest.fixture
def replacing(small):
    """A function that gives the first step of a kind a file of another content, until the test is over."""
    with contextlib.ExitStack() as stack:

        def replace(kind, name, content):
            path = next(step.folder / name for step in small.list_done(kind) if (step.folder / name).exists())
            stack.callback(path.write_bytes, path.read_bytes())
            path.write_bytes(content)

        yield replace


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("train", "coverage.json", b"{"),
        ("train", "coverage.json", b'{"percent": "all", "used": [], "left_out": {}}'),
        ("pretrain", "metrics.jsonl", b'{"step": 0, "loss": "low"}\n'),
        ("pretrain", "metrics.jsonl", b"[]\n"),
    ],
)
def test_a_damaged_file_of_a_step_is_one_sentence(kind, name, content, small, replacing):
    replacing(kind, name, content)
    with pytest.raises(UserError, match=f"{name} (is damaged; delete|has a line without a step)"):
        list(build_run_details(small))


def test_curves_may_be_torn_and_without_a_number(small, replacing):
    replacing("pretrain", "metrics.jsonl", b'{"step": 9, "loss": 0.5, "spread": null}\n{"step": 1')
    (table,) = (block for block in build_run_details(small) if getattr(block, "header", ())[:1] == ("run",))
    assert table.rows[0][1:] == ("10", "0.5000", "-", "-", "-")
