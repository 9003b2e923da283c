"""The published tables, and names of methods and networks."""

import json
from importlib.resources import files

import pytest

from ssql_det.core.errors import UserError
from ssql_det.report.display_names import format_network, match_published_name
from ssql_det.report.published import TABLE_NUMBERS, Column, load_published_table

VALUES = [  # copied by hand from the paper
    (6, "random init.", "FP", "bbox/AP50", 58.9),
    (6, "IN supervised", "4w4a", "bbox/AP", 16.7),
    (6, "BYOL", "5w5a", "bbox/AP50", 62.7),
    (6, "SimSiam", "8w8a", "bbox/AP75", 46.3),
    (6, "SSQL (ours)", "4w4a", "bbox/AP50", 61.2),
    (6, "SSQL-200ep (ours)", "4w4a", "bbox/AP75", 35.0),
    (7, "IN supervised", "6w6a", "bbox/AP50", 58.3),
    (7, "SimSiam", "FP", "segm/AP", 35.2),
    (7, "BYOL", "4w4a", "segm/AP75", 21.7),
    (7, "SSQL (ours)", "5w5a", "bbox/AP", 36.5),
    (7, "SSQL (ours)", "4w4a", "segm/AP", 26.0),
    (12, "BYOL+SSQL", "2w4a", "linear/top1", 85.7),
    (13, "MoCov3", "5w5a", "linear/top1", 82.2),
    (8, "(i)", "4w4a", "linear/top1", 89.6),
]


@pytest.mark.parametrize(("number", "method", "bits", "metric", "value"), VALUES)
def test_values_are_those_of_the_paper(number, method, bits, metric, value):
    assert load_published_table(number).find_row(method).values[Column(bits, metric)] == value


def test_every_table_is_complete_and_names_its_source():
    folder = files("ssql_det.report") / "published"
    assert sorted(each.name for each in folder.iterdir()) == sorted(f"ssql_table{n}.json" for n in TABLE_NUMBERS)
    for number in TABLE_NUMBERS:
        table = load_published_table(number)
        content = json.loads((folder / f"ssql_table{number}.json").read_text("utf-8"))
        assert table.citation.endswith(f"(arXiv:2207.05432), Table {number}")
        assert len(set(table.columns)) == len(content["columns"]) == len(table.column_bits) * len(table.metrics)
        assert [list(row.values.values()) for row in table.rows] == [row["values"] for row in content["rows"]]
        assert all(value is None or 0 < value < 100 for row in table.rows for value in row.values.values())


def test_rows_have_backbone_dataset_epochs_and_settings():
    voc, ablation, probe = load_published_table(6), load_published_table(8), load_published_table(5)
    assert {row.backbone for row in voc.rows} == {"ResNet-18"}
    assert [row.epochs for row in voc.rows] == [None, None, None, None, 200, None, 200]
    assert ablation.find_row("(c)").settings == {
        "q_pred": True,
        "q_target": True,
        "aux": False,
        "w_bits": "4~16",
        "a_bits": "4~16",
    }
    assert probe.rows[3].dataset == "CIFAR-100"
    assert load_published_table(1).find_row("SimSiam-PACT").values[Column("FP", "linear/top1")] is None


def test_settings_in_words():
    settings = {row.method: row.settings_text for row in load_published_table(8).rows}
    assert settings["(a)"] == "nothing quantized"
    assert settings["(b)"] == "quantized targets, weight bits 4 to 16, activation bits 4 to 16"
    assert settings["(e)"] == "quantized predictions, weight bits 6, activation bits 6"
    assert settings["(i)"] == "quantized predictions, auxiliary loss, weight bits 2 to 8, activation bits 4 to 8"
    assert {
        row.settings_text for number in TABLE_NUMBERS if number != 8 for row in load_published_table(number).rows
    } == {""}


def test_averages_of_table_8_are_averages():
    table = load_published_table(8)
    assert (table.bit_widths, table.average_names) == (("FP", "6w6a", "4w4a", "3w3a", "2w4a"), ("Avg.",))
    assert [number for number in TABLE_NUMBERS if load_published_table(number).average_names] == [8]
    for row in table.rows:
        *values, average = row.values.values()
        assert sum(values) / len(values) == pytest.approx(average, abs=0.0501), row.method


def test_values_that_are_printed_twice_are_equal():
    first, second = load_published_table(1), load_published_table(12)
    for method in ("BYOL", "MoCov2"):
        resnet18 = next(row for row in first.rows if row.method == method and row.backbone == "ResNet-18")
        for column, value in second.find_row(method).values.items():
            assert resnet18.values[column] == value


def test_unknown_tables_and_methods_are_refused():
    with pytest.raises(UserError, match="no published Table 2; choose one of 1, 3, 4"):
        load_published_table(2)
    with pytest.raises(KeyError, match="Table 6 has 0 rows of 'SSQL'; it has random init"):
        load_published_table(6).find_row("SSQL")
    with pytest.raises(KeyError, match="Table 1 has 2 rows of 'BYOL'"):
        load_published_table(1).find_row("BYOL")


PUBLISHED_NAMES = {
    "SSQL": "SSQL (ours)",
    " ssql-SimSiam": "SSQL (ours)",
    "SSQL (ours)": "SSQL (ours)",
    "ssql_200": "SSQL-200ep (ours)",
    "SSQL, 200 epochs": "SSQL-200ep (ours)",
    "simsiam-200EP": "SimSiam-200ep",
    "SimSiam": "SimSiam",
    "byol": "BYOL",
    "Random init": "random init.",
    "scratch": "random init.",
    "ImageNet-supervised": "IN supervised",
    "ssql-byol": None,
    "SSQL-400ep": None,
    "MoCo v2": None,
    "": None,
    "()": None,
}


@pytest.mark.parametrize("method", PUBLISHED_NAMES)
def test_methods_are_matched_by_letters_and_digits(method):
    assert match_published_name(method, load_published_table(6).methods) == PUBLISHED_NAMES[method]


def test_an_alias_of_an_absent_row_matches_nothing():
    assert match_published_name("ssql 200", load_published_table(7).methods) is None


@pytest.mark.parametrize(
    ("network", "is_3x3_stem_expected", "printed"),
    [
        ("cifar_resnet18", True, "ResNet-18"),
        ("resnet34", True, "ResNet-34, 7x7 stem"),
        ("resnet50", False, "ResNet-50"),
        ("cifar_resnet50", False, "ResNet-50, 3x3 stem"),
        ("narrow_resnet", True, "narrow ResNet"),
        ("narrow_resnet", False, "narrow ResNet"),
        ("timm/vit_small", True, "timm/vit_small"),
    ],
)
def test_networks_are_named_as_tables_print_them(network, is_3x3_stem_expected, printed):
    assert format_network(network, is_3x3_stem_expected) == printed
