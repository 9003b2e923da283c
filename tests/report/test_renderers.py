"""Comparisons as Markdown and CSV, overview tables and charts."""

import csv
import io

import pytest
from support.report.rows import WIDTHS, make_row

from ssql_det.cli.main import main
from ssql_det.core.rows import Calibration, append_row
from ssql_det.report.comparison import compare_with_published
from ssql_det.report.comparison_blocks import build_chart, build_comparison_blocks, build_overview_table
from ssql_det.report.document import Document
from ssql_det.report.render_csv import HEADER, render_csv
from ssql_det.report.render_html import render_html
from ssql_det.report.render_latex import render_latex
from ssql_det.report.render_markdown import render_markdown

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
SEEDS = [make_row(60.84 + 0.5 * seed, seed=seed, checkpoint_hash=f"h{seed}") for seed in (-1, 0, 1)]


def render_text(table):
    return render_markdown(Document("", build_comparison_blocks(table)))


def get_cells(text, *first_cells):
    """The cells of the only table row that starts with these."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    (cells,) = [line for line in lines if line[: len(first_cells)] == list(first_cells)]
    return cells


def test_a_line_has_the_published_value_ours_and_the_difference():
    text = render_text(compare_with_published(6, SEEDS))
    assert get_cells(text, "SSQL (ours)", "4w4a")[2:5] == ["61.2", "60.8 ± 0.5 (3)", "-0.4"]
    assert get_cells(text, "SSQL (ours)", "FP")[2:5] == ["73.4", "[6]", "-"]
    assert "\n6. `ssql-det sweep --config-file configs/detection/voc_r18_c4.yaml --bits FP,8,6,5 MODEL" in text
    assert "Dataset: voc_2007_test. Scope: all." in text
    assert text.endswith("`\n")


@pytest.mark.parametrize(("ap50", "text"), [(61.24, "+0.0"), (61.16, "+0.0"), (61.26, "+0.1"), (50.0, "-11.2")])
def test_a_difference_has_a_sign_and_no_negative_zero(ap50, text):
    assert get_cells(render_text(compare_with_published(6, [make_row(ap50)])), "SSQL (ours)", "4w4a")[4] == text


def test_nothing_to_find_and_nothing_found_are_told_apart_in_every_format():
    rows = [make_row(metrics={"bbox/AP": 0.0, "bbox/AP50": None, "bbox/AP75": 0.0})]
    comparison = compare_with_published(6, rows)
    cells = get_cells(render_text(comparison), "SSQL (ours)", "4w4a")
    assert cells[2:8] == ["61.2", "no value", "-", "34.1", "0.0", "-34.1"]
    document = Document("", build_comparison_blocks(comparison))
    assert ">no value</td>" in render_html(document)
    assert "& no value &" in render_latex(document)
    records = [each for each in csv.DictReader(io.StringIO(render_csv(comparison))) if each["state"] != "empty"]
    found = {each["metric"]: (each["measured"], each["n"], each["state"]) for each in records if each["bits"] == "4w4a"}
    assert found["bbox/AP50"] == ("", "0", "no value")
    assert found["bbox/AP"] == ("0.0", "1", "measured")


def test_equal_values_have_no_deviation():
    table = render_text(compare_with_published(6, [make_row(60.0), make_row(60.0, seed=1)]))
    assert get_cells(table, "SSQL (ours)", "4w4a")[3] == "60.0 (2)"


def test_boxes_masks_and_costs_are_separate_tables():
    metrics = {f"{task}/{name}": 30.0 for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")} | {"MB": 44.123}
    text = render_text(compare_with_published(7, [make_row(dataset="coco_2017_val", metrics=metrics)]))
    boxes, masks, cost = text.split("### ")[1:]
    assert "| SSQL (ours) | 4w4a | 28.2 | 30.0 | +1.8 |" in boxes
    assert "| SSQL (ours) | 4w4a | 26.0 | 30.0 | +4.0 |" in masks
    assert "| method | bits | MB |" in cost
    assert [line for line in cost.splitlines() if line.startswith("| SSQL")] == ["| SSQL (ours) | 4w4a | 44.12 |"]


def test_a_full_table_has_no_commands():
    methods = ("scratch", "supervised", "BYOL", "SimSiam", "SimSiam-200ep", "SSQL", "SSQL-200ep")
    full = compare_with_published(
        6, [make_row(method=method, bits=bits, checkpoint_hash=method) for method in methods for bits in WIDTHS]
    )
    assert "ssql-det" not in render_text(full)
    assert "ssql-det" not in render_csv(full)


def test_labels_have_the_config_only_if_lines_differ_in_it():
    assert get_cells(
        render_text(compare_with_published(6, [make_row(50.0), make_row(60.0, config="short.yaml")])),
        "SSQL (ours) · short.yaml",
        "FP",
    )
    assert "·" not in render_text(compare_with_published(6, [make_row(50.0)]))


def test_labels_have_only_settings_in_which_lines_of_one_method_differ():
    byol = make_row(60.0, method="BYOL", config="table6/byol.yaml", calibration=Calibration(64))
    ours = [
        make_row(50.0, config="table6/ssql.yaml"),
        make_row(40.0, config="table6/ssql.yaml", calibration=Calibration(32, 1)),
    ]
    text = render_text(compare_with_published(6, [byol, *ours]))
    assert get_cells(text, "BYOL", "4w4a")[3] == "60.0"
    assert get_cells(text, f"SSQL (ours) · {ours[0].calibration}", "4w4a")[3] == "50.0"
    assert get_cells(text, "SSQL (ours) · 32 images, seed 1", "4w4a")[3] == "40.0"
    assert get_cells(text, "SimSiam", "FP")
    assert [
        curve.name
        for curve in build_chart(compare_with_published(6, [byol, ours[0]]), "bbox/AP", "boxes", "Boxes").curves
    ] == [
        "BYOL",
        "SSQL (ours)",
    ]


def test_rows_that_differ_only_in_scheme_are_two_lines_labelled_by_it(tmp_path, capsys):
    """In the output of ``ssql-det tables``."""
    with_own_bits = {"scheme": "act=mse", "overrides": {"backbone.res5.*": "8w8a"}}
    for row in (make_row(50.0), make_row(40.0, scheme="act=mse"), make_row(30.0, **with_own_bits)):
        append_row(tmp_path / "results.jsonl", row)
    arguments = ["tables", "--table", "6", "--rows", str(tmp_path / "results.jsonl")]
    main(arguments)
    text = capsys.readouterr().out
    assert get_cells(text, "SSQL (ours) · minmax", "4w4a")[3] == "50.0"
    assert get_cells(text, "SSQL (ours) · act=mse", "4w4a")[3] == "40.0"
    assert get_cells(text, "SSQL (ours) · act=mse, backbone.res5.\\* at 8w8a", "4w4a")[3] == "30.0"
    assert get_cells(text, "SimSiam", "FP")
    schemes = "act=mse or act=mse, backbone.res5.\\* at 8w8a or minmax"
    assert f"Measured with config voc_r18_c4.yaml; scheme {schemes}; calibration 256" in text
    main([*arguments, "--format", "csv"])
    records = [r for r in csv.DictReader(io.StringIO(capsys.readouterr().out)) if r["state"] == "measured"]
    assert {(r["method"], r["config"], r["calibration"]) for r in records} == {
        ("SSQL (ours)", "voc_r18_c4.yaml", "256 images of voc_2007_trainval, seed 0")
    }
    measured = {r["scheme"]: r["measured"] for r in records if r["metric"] == "bbox/AP50"}
    assert measured == {"minmax": "50.0", "act=mse": "40.0", "act=mse, backbone.res5.* at 8w8a": "30.0"}


def test_rows_without_config_are_separate_from_rows_with_one():
    text = render_text(compare_with_published(6, [make_row(50.0), make_row(60.0, config="")]))
    assert get_cells(text, "SSQL (ours)", "4w4a")[3] == "60.0"
    assert get_cells(text, "SSQL (ours) · voc_r18_c4.yaml", "4w4a")[3] == "50.0"


def test_a_bar_in_a_name_is_escaped():
    text = render_text(compare_with_published(6, [make_row(method="a|b")]))
    assert "| a\\|b | 4w4a | - | 60.0 | - |" in text


def test_toy_data_have_a_note():
    text = render_text(compare_with_published(6, [make_row(dataset="toy_voc_2007_test")], dataset="toy_voc_2007_test"))
    assert "- toy_voc_2007_test is toy data: not comparable" in text


def test_csv_has_a_line_for_each_cell_with_all_digits():
    table = compare_with_published(6, [*SEEDS, make_row(method='odd, "name"')])
    records = list(csv.DictReader(io.StringIO(render_csv(table))))
    assert tuple(records[0]) == HEADER
    assert len(records) == 8 * 5 * 3
    (record,) = [r for r in records if (r["method"], r["bits"], r["metric"]) == ("SSQL (ours)", "4w4a", "bbox/AP50")]
    assert float(record["published"]) == 61.2
    assert float(record["measured"]) == pytest.approx(60.84, abs=1e-12)
    assert float(record["std"]) == pytest.approx(0.5, abs=1e-12)
    assert (record["n"], record["filled_by"], record["comparable"]) == ("3", "", "yes")
    assert any(r["method"] == 'odd, "name"' for r in records)
    empty = [r for r in records if r["method"] == "BYOL"]
    assert all(r["measured"] == r["difference"] == "" and r["n"] == "0" for r in empty)
    assert all(r["filled_by"].startswith("ssql-det sweep") for r in empty)


def test_hostile_names_add_no_markup():
    table = compare_with_published(6, [make_row(method="[here](https://a.example) `code`", config="*bold*")])
    assert "| [here] (https://a.example) 'code' |" in render_text(table)
    assert "config \\*bold\\*;" in render_text(table)


def test_an_overview_has_published_values_and_ours_below():
    rows = [*SEEDS, make_row(50.0, method="SSQL-BYOL", bits="2w4a")]
    table = build_overview_table(compare_with_published(6, rows), "bbox/AP50")
    assert table.header == ("method", "values", *WIDTHS, "2w4a")
    assert table.text_columns == 2
    assert table.rows[0] == ("random init.", "published", "58.9", "58.7", "58.4", "57.0", "42.4", "-")
    assert table.rows[-3:] == (
        ("SSQL (ours)", "measured", "-", "-", "-", "-", "60.8 ± 0.5 (3)", "-"),
        ("SSQL-200ep (ours)", "published", "73.2", "73.2", "72.9", "71.3", "61.2", "-"),
        ("SSQL-BYOL", "measured", "-", "-", "-", "-", "-", "50.0"),
    )
    assert len(table.rows) == 7 + 2


def test_an_overview_prints_published_values_once_and_leaves_out_empty_lines():
    cost = {"bbox/AP50": 60.0, "MB": 5.5}
    table = compare_with_published(
        6, [make_row(metrics=cost), make_row(metrics=cost, config="a.yaml"), make_row(method="x", metrics={}, seed=1)]
    )
    ssql_rows = [
        line[:2] for line in build_overview_table(table, "bbox/AP50").rows if line[0].startswith("SSQL (ours)")
    ]
    assert ssql_rows == [
        ("SSQL (ours)", "published"),
        ("SSQL (ours) · a.yaml", "measured"),
        ("SSQL (ours) · voc_r18_c4.yaml", "measured"),
    ]
    assert [line[1] for line in build_overview_table(table, "MB").rows] == ["measured", "measured"]


def test_a_chart_has_the_measured_values():
    byols = make_row(65.0, bits="FP", method="BYOL", checkpoint_hash="byol")
    rows = [*SEEDS, make_row(70.0, bits="FP"), byols, make_row(method="x", metrics={}, seed=9)]
    rows += [make_row(bits="2w4a", metrics={"bbox/AP50": None})]
    chart = build_chart(compare_with_published(6, rows), "bbox/AP50", "boxes", "Boxes")
    assert (chart.name, chart.title, chart.y_label, chart.x_labels) == ("boxes", "Boxes", "AP50", ("FP", "4w4a"))
    byol, ssql = chart.curves
    assert (byol.name, byol.values, byol.std) == ("BYOL", (65.0, None), (None, None))
    assert ssql.values == (70.0, pytest.approx(60.84))
    assert ssql.std == (None, pytest.approx(0.5))
    assert build_chart(compare_with_published(6, []), "bbox/AP50", "boxes", "Boxes").curves == ()
