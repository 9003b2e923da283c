"""The page of any rows: what is averaged, what it begins with, losses, sizes, times."""

import pytest
from support.report.rows import make_probe_row, make_row

from ssql_det.report.blocks import Chart, Collapsible, Paragraph, Scatter, Table, Tiles
from ssql_det.report.cost_report import Speed, build_cost_report, get_headline
from ssql_det.report.measured_detectors import list_detectors
from ssql_det.report.render_html import render_html

APS = {"FP": 40.0, "8w8a": 39.9, "4w4a": 38.5, "2w4a": 30.0}
MBS = {"FP": 3.2, "8w8a": 0.8, "4w4a": 0.4, "2w4a": 0.2}


def make_rows(shift=0.0, seed=0, bit_widths=tuple(APS), **changes):
    fields = {"seed": seed, "checkpoint_hash": f"{changes.get('method', '')}{seed}", **changes}
    return [
        make_row(bits=bits, metrics={"bbox/AP": APS[bits] + shift, "bbox/AP50": 60.0, "MB": MBS[bits]}, **fields)
        for bits in bit_widths
    ]


def find(page, kind):
    return [block for block in page.iterate_blocks() if isinstance(block, kind)]


def test_the_page_begins_with_what_4_bits_cost():
    page = build_cost_report(make_rows())
    assert get_headline(page) == "4 bits cost 1.5 AP and take 1/8.0 of the size."
    ((tile,),) = (each.tiles for each in find(page, Tiles))
    assert (tile.title, tile.value, tile.text) == ("SSQL", "-1.5 AP", "at 4w4a: 38.5 of 40.0; 1/8.0 of the size")


def test_it_names_the_detector_that_is_best_there():
    rows = [*make_rows(method="SSQL"), *make_rows(0.5, method="BYOL"), *make_rows(9.0, method="x", bit_widths=("FP",))]
    page = build_cost_report(rows)
    assert get_headline(page).endswith("of the size, at best: BYOL.")
    ((*tiles,),) = (each.tiles for each in find(page, Tiles))
    assert [(tile.title, tile.value) for tile in tiles] == [("SSQL", "-1.5 AP"), ("BYOL", "-1.5 AP"), ("x", "49.0 AP")]


@pytest.mark.parametrize(
    ("bit_widths", "headline"),
    [
        (("FP", "8w8a", "2w4a"), "8 bits cost 0.1 AP and take 1/4.0 of the size."),
        (("FP", "2w4a"), "2-bit weights with 4-bit activations cost 10.0 AP and take 1/16.0 of the size."),
        (("4w4a",), ""),
        (("FP",), ""),
    ],
)
def test_other_bit_widths_take_its_place(bit_widths, headline):
    assert get_headline(build_cost_report(make_rows(bit_widths=bit_widths))) == headline


def test_a_gain_costs_nothing():
    rows = [make_row(bits=bits, metrics={"bbox/AP": ap}) for bits, ap in (("FP", 40.0), ("4w4a", 40.2))]
    page = build_cost_report(rows)
    assert get_headline(page) == "4 bits cost nothing."
    assert find(page, Tiles)[0].tiles[0].value == "+0.2 AP"


def test_seeds_are_averaged_and_a_loss_is_that_of_each_checkpoint():
    """The third seed was not measured at full precision: it counts for AP, and not for the loss."""
    rows = [*make_rows(0.0, 0), *make_rows(2.0, 1), *make_rows(100.0, 2, bit_widths=("4w4a",))]
    (detector,) = list_detectors(rows)
    assert detector.get_mean("FP", "bbox/AP") == 41.0
    assert detector.get("4w4a", "bbox/AP").n == 3
    assert detector.get_loss("4w4a", "bbox/AP").mean == pytest.approx(1.5)
    assert detector.get_loss("4w4a", "bbox/AP").n == 2


def test_full_precision_is_borrowed_from_the_same_weights():
    """As where a repaired detector, or the bits of a search, was measured at few bits alone."""
    rows = [*make_rows(scheme="minmax"), *make_rows(0.5, scheme="act=mse", bit_widths=("4w4a",))]
    rows += make_rows(0.5, scheme="act=mse", bit_widths=("4w4a",), checkpoint_hash="other", seed=1)
    plain, other = list_detectors(rows)
    assert other.get_loss("4w4a", "bbox/AP").mean == pytest.approx(1.0)
    assert (other.get("FP", "bbox/AP").n, other.get("4w4a", "bbox/AP").n) == (1, 2)
    assert len(plain.rows) == len(APS)
    ((*tiles,),) = (each.tiles for each in find(build_cost_report(rows), Tiles))
    assert [tile.value for tile in tiles] == ["-1.5 AP", "-1.0 AP"]


def test_detectors_are_named_by_what_differs():
    rows = [*make_rows(scheme="minmax"), *make_rows(scheme="act=mse"), *make_rows(scheme="act=mse", scope="backbone")]
    names = [each.name for each in list_detectors(rows)]
    assert names == ["minmax · scope all", "act=mse · scope all", "act=mse · scope backbone"]
    assert [each.name for each in list_detectors(make_rows(method="", checkpoint="own.pth"))] == ["own.pth"]


def test_charts_and_tables_have_every_bit_width():
    page = build_cost_report(make_rows())
    (chart,), scatters, (overview, details, _) = find(page, Chart), find(page, Scatter), find(page, Table)
    assert chart.curves[0].values == tuple(APS.values())
    assert chart.separate == ("2w4a",)
    ((series,),) = (each.series for each in scatters)
    assert series.points == ((0.2, 30.0), (0.4, 38.5), (0.8, 39.9), (3.2, 40.0))
    assert overview.rows == (("SSQL", "40.0", "39.9 (-0.1)", "38.5 (-1.5)", "30.0 (-10.0)"),)
    assert details.rows[2] == ("4w4a", "38.5", "1.5", "60.0", "-", "0.400")


def test_measured_times_are_joined_by_the_weights():
    times = [("FP", "torch", 50.0), ("FP", "onnxruntime", 30.0), ("4w4a", "onnxruntime", 12.0)]
    speeds = [
        Speed("ssql.pth", checkpoint_hash, runtime, bits, time, None, "EPYC, 1 thread")
        for checkpoint_hash in ("0", "another")
        for bits, runtime, time in times
    ]
    page = build_cost_report(make_rows(checkpoint_hash="0"), speeds)
    timed = find(page, Scatter)[-1]
    assert [each.points for each in timed.series] == [((12.0, 38.5), (30.0, 40.0))]
    table = find(page, Table)[2]
    assert (table.caption, len(table.rows)) == ("EPYC, 1 thread", 6)


def test_probes_have_a_section_of_their_own():
    rows = [*make_rows(), *(make_probe_row(top1, bits=bits) for bits, top1 in (("FP", 91.0), ("4w4a", 88.0)))]
    page = build_cost_report(rows)
    assert [heading.text for heading in page.headings] == [
        *("What few bits cost", "On cifar10", "On voc_2007_test", "How this was measured"),
    ]
    assert [each.value for each in find(page, Tiles)[0].tiles] == ["-3.0 % top-1", "-1.5 AP"]
    assert get_headline(page) == "4 bits cost 1.5 AP and take 1/8.0 of the size."  # 88 % are not more than 38 AP


def test_values_that_are_missing_are_said_once():
    rows = make_rows()
    rows += [make_row(bits=bits, metrics={"bbox/AP": None}, method="empty") for bits in ("FP", "4w4a")]
    page = build_cost_report([*rows, *make_rows()])
    texts = render_html(page)
    assert texts.count("2 rows have a metric without a value, which no mean includes.") == 1
    assert "4 older rows of the same measurements were left out." in texts
    assert find(page, Tiles)[0].tiles[-1].value == "not measured"


def test_settings_and_the_command_are_in_the_appendix():
    page = build_cost_report(make_rows(versions={"torch": "2.14.1"}), command="ssql-det report x")
    settings = find(page, Collapsible)[-1]
    texts = render_html(page)
    assert settings.summary == "Settings of each row"
    assert "torch 2.14.1" in texts
    assert "ssql-det report x" in texts
    assert not [each for each in find(page, Paragraph) if "publish" in each.text]


def test_no_rows_are_an_empty_page():
    assert find(build_cost_report([]), Chart) == []


def test_classes_are_listed_by_what_they_lose():
    aps = {"FP": {"one": 40.0, "two": 30.0, "no": None}, "4w4a": {"one": 39.5, "two": 22.0, "no": None}}
    rows = [
        make_row(
            bits=bits,
            metrics={"bbox/AP": 35.0},
            class_aps={f"{task}/{name}": ap for name, ap in of_classes.items() for task in ("bbox", "segm")},
        )
        for bits, of_classes in aps.items()
    ]
    (block,) = [each for each in find(build_cost_report(rows), Collapsible) if "class" in each.summary]
    (table,) = block.blocks
    assert table.header == ("class", "FP", "4w4a", "lost at 4w4a")
    assert table.rows == (("two", "30.0", "22.0", "8.0"), ("one", "40.0", "39.5", "0.5"), ("no", "-", "-", "-"))
    assert not [each for each in find(build_cost_report(make_rows()), Collapsible) if "class" in each.summary]


def test_there_is_no_chart_of_one_bit_width_and_tiles_name_their_data_set():
    rows = [*make_rows(bit_widths=("FP",)), *make_rows(0.5, bit_widths=("FP",), method="BYOL")]
    assert not find(build_cost_report(rows), (Chart, Scatter))
    others = make_rows(dataset="coco_2017_val", method="BYOL")
    ((*tiles,),) = (each.tiles for each in find(build_cost_report([*rows, *others]), Tiles))
    assert [tile.title for tile in tiles] == ["BYOL, coco_2017_val", "SSQL, voc_2007_test", "BYOL, voc_2007_test"]
