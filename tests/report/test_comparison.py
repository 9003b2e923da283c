"""Comparisons of sweeps' rows with the published tables."""

import ast
import dataclasses
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.report.rows import WIDTHS, find_cell, find_line, make_row

from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.report.comparison import compare_with_published
from ssql_det.report.published import load_published_table
from ssql_det.report.row_groups import Measurement


def test_several_seeds_become_mean_deviation_and_difference():
    values = [60.1, 61.7, 59.2]
    table = compare_with_published(
        6, [make_row(ap50, seed=seed, checkpoint_hash=f"h{seed}") for seed, ap50 in enumerate(values)]
    )
    cell = find_cell(table)
    assert cell.published == 61.2
    assert cell.measured.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert cell.measured.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert cell.measured.n == 3
    assert cell.difference == pytest.approx(60.33333333333 - 61.2)
    assert find_cell(table, metric="bbox/AP75").measured.mean == pytest.approx(np.mean(values) / 3)
    assert not any("averages" in note for note in table.notes)


def test_one_row_has_no_deviation():
    assert find_cell(compare_with_published(6, [make_row(61.0)])).measured == Measurement(61.0, None, 1)


def test_mask_metrics_are_compared_with_mask_metrics():
    metrics = {"bbox/AP": 28.0, "bbox/AP50": 45.0, "bbox/AP75": 29.0, "segm/AP": 25.5}
    table = compare_with_published(7, [make_row(dataset="coco_2017_val", metrics=metrics)])
    assert find_cell(table, metric="segm/AP").difference == pytest.approx(25.5 - 26.0)
    assert find_cell(table, metric="bbox/AP").difference == pytest.approx(28.0 - 28.2)
    assert find_cell(table, metric="segm/AP50").measured is None
    assert "--bits FP,6,5,4 " in find_line(table).measure_command  # the row lacks segm/AP50: 4 bits are not done


def test_the_order_of_rows_does_not_matter():
    rows = [
        make_row(50 + seed / 7 + len(bits), seed=seed, bits=bits, method=method, checkpoint_hash=f"{method}{seed}")
        for seed in range(3)
        for bits in (*WIDTHS, "2w4a", "8w")
        for method in ("SSQL", "ssql", "byol", "Mine", "other")
    ]
    rows += [
        make_row(10.0, scope="backbone"),
        make_row(70.0, checkpoint_hash="SSQL0"),
        make_row(11.0, config="short.yaml"),
    ]
    expected = compare_with_published(6, rows)
    assert (
        len(expected.lines) == 10 * 5 + 4 * 2
    )  # 7 published ones, SSQL's short one, two of our own; more bits of four
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert compare_with_published(6, shuffled) == expected


@pytest.mark.parametrize("backwards", [False, True])
def test_a_newer_row_replaces_the_older_of_the_same_measurement(backwards):
    rows = [make_row(50.0), make_row(60.0), make_row(55.0)]
    table = compare_with_published(6, rows[::-1] if backwards else rows)
    assert find_cell(table).measured == Measurement(55.0, None, 1)
    assert "Replaced by a newer row of the same measurement: 2 rows." in table.notes


def test_times_of_different_zones_are_compared():
    earlier = make_row(50.0, time="2024-05-01T23:30:00+02:00")
    later = make_row(60.0, time="2024-05-01T22:00:00+00:00")
    assert find_cell(compare_with_published(6, [later, earlier])).measured.mean == 60.0
    assert (
        find_cell(
            compare_with_published(6, [later, dataclasses.replace(earlier, time="2024-05-01T22:30:00")])
        ).measured.mean
        == 50.0
    )


@pytest.mark.parametrize("change", [{"checkpoint_hash": "other"}, {"seed": 1}], ids=str)
def test_a_row_of_another_checkpoint_or_seed_is_averaged(change):
    assert find_cell(compare_with_published(6, [make_row(50.0), make_row(60.0, **change)])).measured.mean == 55.0


@pytest.mark.parametrize(
    "change",
    [
        {"config": "short.yaml"},
        {"scheme": "norms=re-estimated"},
        {"overrides": {"backbone.res5.*": "8w8a"}},
        {"calibration": Calibration(256, 1, "voc_2007_trainval")},
    ],
    ids=["config", "norms", "bits of single modules", "calibration"],
)
def test_rows_of_another_config_scheme_or_calibration_are_a_separate_line(change):
    table = compare_with_published(6, [make_row(50.0), make_row(60.0, seed=1, **change)])
    lines = [line for line in table.lines if (line.method, line.bits) == ("SSQL (ours)", "4w4a")]
    assert sorted(line.cells["bbox/AP50"].measured.mean for line in lines) == [50.0, 60.0]
    assert all(line.cells["bbox/AP50"].published == 61.2 for line in lines)


@pytest.mark.parametrize("change", [{"scope": "backbone"}, {"dataset": "toy_voc_2007_test"}], ids=str)
def test_rows_of_another_scope_or_dataset_are_left_out(change):
    ours = [make_row(50.0), make_row(60.0, bits="FP")]
    others = [make_row(99.0, seed=seed, bits=bits, method="Only there", **change) for seed in (0, 1) for bits in WIDTHS]
    table = compare_with_published(6, ours + others)
    assert table.lines == compare_with_published(6, ours).lines
    assert any(note.startswith("Left out") and ": 10 rows of " in note for note in table.notes)
    other_comparison = compare_with_published(6, ours + others, **change)
    assert find_cell(other_comparison, "Only there").measured == Measurement(99.0, 0.0, 2)
    assert find_cell(other_comparison).measured is None


def test_toy_rows_are_called_not_comparable_and_get_no_difference():
    table = compare_with_published(6, [make_row(97.0, dataset="toy_voc_2007_test")], dataset="toy_voc_2007_test")
    cell = find_cell(table)
    assert (cell.published, cell.measured.mean, cell.difference) == (61.2, 97.0, None)
    assert not table.is_comparable
    assert table.notes[0].startswith("toy_voc_2007_test is toy data: not comparable with the published values")
    assert compare_with_published(6, []).is_comparable


def test_unpublished_bit_widths_are_shown_if_measured():
    table = compare_with_published(
        7, [make_row(dataset="coco_2017_val", bits="8w8a"), make_row(dataset="coco_2017_val", bits="2w4a")]
    )
    assert [line.bits for line in table.lines if line.method == "SSQL (ours)"] == ["FP", *WIDTHS[1:], "2w4a"]
    assert [line.bits for line in table.lines if line.method == "BYOL"] == ["FP", "6w6a", "5w5a", "4w4a"]
    assert find_cell(table, bits="8w8a", metric="bbox/AP").published is None


def test_an_unpublished_method_comes_last_without_published_values():
    table = compare_with_published(
        6, [make_row(50.0, method="SSQL-BYOL"), make_row(40.0, method="", checkpoint_hash="other")]
    )
    assert list(dict.fromkeys(line.method for line in table.lines)) == [
        *load_published_table(6).methods,
        "(not named)",
        "SSQL-BYOL",
    ]
    assert {cell.published for cell in find_line(table, "SSQL-BYOL").cells.values()} == {None}
    assert find_cell(table, "SSQL-BYOL").measured.mean == 50.0
    assert find_cell(table, "SSQL-BYOL").difference is None


def test_costs_are_averaged_and_have_no_published_values():
    cost = {"bbox/AP50": 60.0, "MB": 5.5, "GBOPs": 12.0}
    table = compare_with_published(6, [make_row(metrics=cost), make_row(metrics=cost | {"GBOPs": 13.0}, seed=1)])
    assert table.metrics == ("bbox/AP50", "bbox/AP", "bbox/AP75", "MB", "GBOPs")
    assert find_cell(table, metric="GBOPs").measured.mean == 12.5
    assert find_cell(table, metric="MB").published is None


@pytest.mark.parametrize("number", [6, 7])
def test_without_rows_every_cell_is_empty_and_names_its_command(number):
    table = compare_with_published(number, [])
    published = load_published_table(number)
    assert [(line.method, line.bits) for line in table.lines] == [
        (method, bits) for method in published.methods for bits in published.column_bits
    ]
    for line in table.lines:
        assert all(cell.measured is None and cell.published for cell in line.cells.values())
        assert line.measure_command.startswith("ssql-det sweep --config-file configs/detection/")
        assert f"--bits {'FP,8,6,5,4' if number == 6 else 'FP,6,5,4'} MODEL.WEIGHTS <" in line.measure_command


def test_the_command_measures_only_missing_bit_widths():
    table = compare_with_published(
        6, [make_row(scope="backbone", bits=bits) for bits in ("FP", "6w6a", "4w4a")], scope="backbone"
    )
    assert [find_line(table, bits=bits).measure_command == "" for bits in WIDTHS] == [True, False, True, False, True]
    assert find_line(table, bits="5w5a").measure_command == (
        "ssql-det sweep --config-file configs/detection/voc_r18_c4.yaml --bits 8,5 --scope backbone "
        "MODEL.WEIGHTS <ssql.pth> SSQL_DET.METHOD SSQL OUTPUT_DIR sweeps/ssql-backbone "
        "# scheme: minmax; calibration: 256 images of voc_2007_trainval, seed 0"
    )
    assert "SSQL_DET.METHOD 'random init.' " in find_line(table, "random init.").measure_command


def test_on_other_data_the_command_names_them():
    words = shlex.split(find_line(compare_with_published(6, [], dataset="my_dogs")).measure_command)
    assert words[words.index("--config-file") + 1] == "<my_dogs.yaml>"
    assert words[words.index("DATASETS.TEST") + 1] == "('my_dogs',)"
    assert words[-1] == "sweeps/ssql-my_dogs"


def test_the_command_repeats_the_config_of_the_rows_and_its_overrides():
    config = """zoo/faster_r50_c4.yaml INPUT.MIN_SIZE_TEST 400 DATASETS.TRAIN "('voc_2007_train',)" """
    words = shlex.split(find_line(compare_with_published(6, [make_row(config=config)]), bits="FP").measure_command)
    assert words[words.index("--config-file") + 1] == "configs/detection/zoo/faster_r50_c4.yaml"
    assert words[words.index("INPUT.MIN_SIZE_TEST") + 1] == "400"
    assert words[words.index("DATASETS.TRAIN") + 1] == "('voc_2007_train',)"


def test_every_config_of_the_repository_is_found_by_its_name_in_rows():
    folder = Path(__file__).parents[2] / "configs/detection"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}
    names = {name for name in names if not name.startswith("base/")}  # of no detector
    assert {"voc_r18_c4.yaml", "table6/ssql.yaml"} < names
    for name in names:
        assert (
            f"--config-file configs/detection/{name} "
            in find_line(compare_with_published(6, [make_row(config=name)]), bits="FP").measure_command
        )


@pytest.mark.parametrize("name", ["mine.yaml", "mine/ssql.yaml", "/home/me/table6/ssql.yaml"])
def test_a_config_from_elsewhere_is_a_placeholder_in_the_command(name):
    assert (
        f"--config-file <{name}> "
        in find_line(compare_with_published(6, [make_row(config=f"{name} SEED 3")]), bits="FP").measure_command
    )


def test_an_unknown_dataset_is_refused():
    with pytest.raises(UserError, match="no row has the dataset 'voc_2007_tset'; did you mean 'voc_2007_test'"):
        compare_with_published(6, [make_row()], dataset="voc_2007_tset")


@pytest.mark.parametrize(
    ("number", "dataset"),
    [(6, "voc_2007_test"), (7, "coco_2017_val"), (6, "toy_voc_2007_test"), (7, "toy_coco_2017_val")],
)
def test_the_config_of_a_command_exists_and_tests_on_the_dataset(number, dataset):
    words = shlex.split(find_line(compare_with_published(number, [], dataset=dataset)).measure_command)
    config = Path(__file__).parents[2] / words[words.index("--config-file") + 1]
    tested_on = yaml.safe_load(config.read_text("utf-8"))["DATASETS"]["TEST"]
    assert ast.literal_eval(tested_on) == (dataset,)
    assert "DATASETS.TEST" not in words


def test_a_metric_that_is_not_a_number_is_not_an_empty_cell_and_has_a_note():
    not_numbers = {"bbox/AP50": None, "bbox/AP": float("nan"), "bbox/AP75": 20.0}
    table = compare_with_published(6, [make_row(metrics=not_numbers)])
    assert find_cell(table).measured == find_cell(table, metric="bbox/AP").measured == Measurement(None, None, 0)
    assert find_cell(table).difference is None
    assert find_cell(table, metric="bbox/AP75").measured.mean == 20.0
    assert find_line(table).measure_command == ""
    assert any("1 row with a metric that has no value" in note for note in table.notes)
    with_number = compare_with_published(6, [make_row(metrics=not_numbers), make_row(60.0, seed=1)])
    assert find_cell(with_number).measured == Measurement(60.0, None, 1)


DOUBTFUL_ROWS = {
    "averages 2 rows with the same seed 0": [make_row(), make_row(method="ssql", checkpoint_hash="other")],
    "averages detectors of different size": [make_row(metrics={"MB": 5.0}), make_row(metrics={"MB": 6.0}, seed=1)],
    "engine detectron2 or minid2": [make_row(), make_row(seed=1, engine="detectron2")],
    "not those of this table: 1 row of voc_2007_test, scope backbone.": [make_row(scope="backbone")],
}


@pytest.mark.parametrize("text", DOUBTFUL_ROWS)
def test_doubtful_averages_have_a_note(text):
    assert any(text in note for note in compare_with_published(6, DOUBTFUL_ROWS[text]).notes)
    assert not any(text in note for note in compare_with_published(6, [make_row()]).notes)


def test_checkpoints_without_a_fixed_seed_have_no_note():
    rows = [make_row(seed=-1), make_row(seed=-1, checkpoint_hash="other")]
    assert not any("seed -1" in note for note in compare_with_published(6, rows).notes)


def test_possible_misprints_are_noted():
    assert (
        sum(
            note.startswith("Possible misprint in the published table: ")
            for note in compare_with_published(7, []).notes
        )
        == 2
    )


@pytest.mark.parametrize("number", [0, 2, 9])
def test_an_unknown_table_is_refused(number):
    with pytest.raises(UserError, match=f"no published Table {number}; choose one of 1, 3, 4, 5, 6, 7, 8, 12, 13"):
        compare_with_published(number, [])
