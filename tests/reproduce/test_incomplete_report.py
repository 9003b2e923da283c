"""The report on an incomplete run lists what is missing; hostile texts in it have no effect."""

from dataclasses import replace

import pytest
from support.report.pages import HOSTILE
from support.reproduce.fake_runs import check_page, find_tables, list_paragraphs, make_fake_run
from support.reproduce.plans import ROOT, build_plan

from ssql_det.report.blocks import Collapsible, Heading, ItemList
from ssql_det.reproduce.report_page import build_report, write_report, write_tables
from ssql_det.reproduce.runner import FAILED, SKIPPED, StepOutcome

pytestmark = pytest.mark.slow

REASON = "a step that it needs failed or was skipped"
FAILED_STEPS = {
    "convert-ssql-0": StepOutcome(FAILED, 3.0, "thesis.pth is not a checkpoint; give one"),
    **{f"{kind}-c4-ssql-0": StepOutcome(SKIPPED, reason=REASON) for kind in ("train", "sweep", "predict")},
}


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def fail_kinds(preset, kinds, **choices):
    return {
        step.name: StepOutcome(FAILED, 1.0, "no") for step in build_plan(preset, **choices).steps if step.kind in kinds
    }


def list_headings(document):
    return [block.text for block in document.iterate_blocks() if isinstance(block, Heading)]


def list_measured(document):
    return {
        (index, row[0])
        for index, table in enumerate(each for each in find_tables(document, "method") if each.header[1] == "values")
        for row in table.rows
        if row[1] == "measured"
    }


def test_failed_steps_are_listed_with_their_reason(tmp_path):
    results = make_fake_run(tmp_path, failed=FAILED_STEPS)
    document = build_report(results)
    page, read = check_page(document)
    (missing,) = (each for each in find_tables(document, "step") if each.header[1] == "state")
    logs = tmp_path / "logs"
    assert set(missing.rows) == {
        ("convert-ssql-0", "failed", "thesis.pth is not a checkpoint; give one", f"{logs}/convert-ssql-0.txt"),
        *(
            (f"{kind}-c4-ssql-0", "skipped", REASON, f"{logs}/{kind}-c4-ssql-0.txt")
            for kind in ("train", "sweep", "predict")
        ),
    }
    assert {"convert-ssql-0", "thesis.pth is not a checkpoint; give one"} <= set(page.texts) & set(read.texts)
    assert (0, "SSQL (ours)") not in list_measured(document)
    assert {(0, "SimSiam"), (1, "SSQL (ours)")} <= list_measured(document)
    assert len(page.all("img")) == 2 * 10 + 2  # detections, and maps of features


def test_a_complete_run_lists_nothing_as_missing(tmp_path):
    document = build_report(make_fake_run(tmp_path))
    assert "What is missing" not in list_headings(document)
    (left_out,) = (
        block for block in document.blocks if isinstance(block, Collapsible) and "Published" in block.summary
    )
    (items,) = left_out.blocks
    assert isinstance(items, ItemList)
    assert [text.split(":")[0] for text in items.texts if "BYOL" in text] == ["BYOL of Table 6", "BYOL of Table 7"]


@pytest.mark.parametrize(
    "kinds", [("sweep",), ("predict",), ("pretrain",), ("analyze",), ("train", "sweep", "predict")], ids=str
)
def test_any_kind_of_step_may_be_missing(kinds, tmp_path):
    document = build_report(make_fake_run(tmp_path, failed=fail_kinds("mini", kinds)))
    check_page(document)
    assert bool(list_measured(document)) == ("sweep" not in kinds)
    assert ("No detections were drawn: no predict step is done." in list_paragraphs(document)) == ("predict" in kinds)
    assert ("Features at low bit-widths" in list_headings(document)) == ("analyze" not in kinds)
    assert ("Pretraining" in list_headings(document)) == ("pretrain" not in kinds)
    assert ("Nothing was measured at full precision, so losses are unknown." in list_paragraphs(document)) == (
        "sweep" in kinds
    )


def test_a_detector_without_rows(tmp_path):
    failed = {name: outcome for name, outcome in fail_kinds("mini", ("sweep", "predict")).items() if "fpn" in name}
    results = make_fake_run(tmp_path, failed=failed)
    check_page(build_report(results))
    assert {index for index, _ in list_measured(build_report(results))} == {0}
    assert len(list(write_tables(results))) == 2
    assert "toy_coco_2017_val" in (tmp_path / "tables/table7.md").read_text()


def test_a_run_without_any_result(tmp_path):
    everything = ("data", "pretrain", "convert", "train", "sweep", "predict", "analyze")
    results = make_fake_run(tmp_path, failed=fail_kinds("mini", everything))
    check_page(build_report(results))
    assert write_report(results).is_file()


def test_toy_data_and_single_seeds_have_a_warning(tmp_path):
    nothing = fail_kinds("paper", ("pretrain", "convert", "train", "sweep", "predict"), tables=(6,), seeds=1)
    paper = build_report(make_fake_run(tmp_path / "paper", "paper", tables=(6,), seeds=1, failed=nothing))
    mini, small = (
        build_report(make_fake_run(tmp_path / "mini")),
        build_report(make_fake_run(tmp_path / "small", "small", tables=(6,))),
    )
    for document, is_toy, is_one in ((small, True, False), (mini, True, True), (paper, False, True)):
        assert any(text.startswith("These are toy data") for text in list_paragraphs(document)) == is_toy
        assert any(text.startswith("With one seed") for text in list_paragraphs(document)) == is_one
        check_page(document)


def check_page_with(text, folder):
    """The page in which this text is the reason of a failure, a method's name, and why a tensor was left out."""
    failed = {name: replace(outcome, reason=text) for name, outcome in FAILED_STEPS.items()}
    command = f"ssql-det reproduce --methods {text}"
    names = {"simsiam": text, "reason": text}
    return check_page(build_report(make_fake_run(folder, failed=failed, names=names, command=command)))


@pytest.fixture(scope="module")
def tame(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return check_page_with("words", tmp_path_factory.mktemp("tame"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_have_no_effect(text, tame, tmp_path):
    for tags, expected in zip(check_page_with(text, tmp_path), tame, strict=True):
        assert list_tags(tags) == list_tags(expected)


def list_tags(page):
    """All but code, which a text may hold, and a chart's elements, which depend on the length of names."""
    return [tag for tag, _ in page.tags if tag not in ("code", "text", "tspan", "g", "path", "polyline", "svg", "desc")]
