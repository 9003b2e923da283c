"""Tables of linear probes, and the lines of all tables that are only published."""

import random
import shlex
from pathlib import Path

import pytest
from support.report.rows import find_line, make_probe_row, make_protocol, make_row

from ssql_det.cli.main import make_parser
from ssql_det.core.rows import Calibration
from ssql_det.pretrain.config import build_metadata, read_config
from ssql_det.report.comparison import compare_with_published
from ssql_det.report.comparison_blocks import build_overview_table
from ssql_det.report.published import TABLE_NUMBERS, load_published_table
from ssql_det.report.row_groups import Measurement

ROOT = Path(__file__).parents[2]
WIDTHS = ("FP", "6w6a", "4w4a", "3w3a", "2w4a")  # of Table 8
PUBLISHED_ONLY = {
    1: [],
    3: [],
    4: [
        f"{network} {method}" for network in ("ResNet-18", "ResNet-50") for method in ("SimSiam", "BYOL", "SSQL (ours)")
    ],
    5: ["ResNet-50 SimSiam", "ResNet-50 SSQL (ours)"] * 7,
    6: [],
    7: [],
    8: [],
    12: [],
    13: ["ViT-Small MoCov3", "ViT-Small MoCov3+SSQL"],
}
FILLED = [  # table; a row's network and method; the printed line that it belongs to, and its value
    (1, "cifar_resnet18", "SSQL", "ResNet-18", "SSQL (ours)", 90.1),
    (1, "cifar_resnet18", "SimSiam", "ResNet-18", "SimSiam", 88.9),
    (1, "cifar_resnet50", "SSQL", "ResNet-50", "SSQL (ours)", 90.0),
    (1, "cifar_resnet50", "simclr", "ResNet-50", "SimCLR", 88.1),
    (3, "resnet18", "SSQL", "ResNet-18", "SSQL (ours)", 52.8),
    (3, "resnet50", "simsiam", "ResNet-50", "SimSiam", 52.4),
    (8, "cifar_resnet34", "SimSiam", "ResNet-34", "(a)", 87.2),
    (8, "cifar_resnet34", "SSQL", "ResNet-34", "(i)", 89.6),
    (8, "cifar_resnet34", "(d)", "ResNet-34", "(d)", 89.5),
    (1, "cifar_resnet18", "SSQL-SimCLR", "ResNet-18", "SSQL-NCE (ours)", 87.9),
    (12, "cifar_resnet18", "SSQL-BYOL", "ResNet-18", "BYOL+SSQL", 89.8),
    (12, "cifar_resnet18", "SSQL-MoCo v2", "ResNet-18", "MoCov2+SSQL", 88.5),
    (12, "cifar_resnet18", "byol", "ResNet-18", "BYOL", 88.0),
    (1, "cifar_resnet18", "SimSiam-PACT (our reconstruction)", "ResNet-18", "SimSiam-PACT", 89.2),
]


def get_top1(line):
    return line.cells["linear/top1"]


def dataset(number):
    return "imagenet" if number == 3 else "cifar10"


@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_lines_without_a_command_are_published_only(number):
    table = compare_with_published(number, [])
    bits = load_published_table(number).column_bits[0]
    published_only = [line for line in table.lines if line.bits == bits and line.is_published_only]
    assert [f"{line.backbone} {line.method}" for line in published_only] == PUBLISHED_ONLY[number]
    with_values = [line for line in table.lines if any(cell.published is not None for cell in line.cells.values())]
    assert all(line.is_published_only != bool(line.measure_command) for line in with_values)
    assert table.is_comparable


@pytest.mark.parametrize(("number", "network", "method", "backbone", "printed", "published"), FILLED)
def test_a_row_belongs_to_the_line_of_its_network(number, network, method, backbone, printed, published):
    rows = [
        make_probe_row(
            published + 1 + seed, network, method=method, dataset=dataset(number), seed=seed, checkpoint_hash=str(seed)
        )
        for seed in (0, 1)
    ]
    table = compare_with_published(number, rows)
    cell = get_top1(find_line(table, printed, backbone=backbone))
    assert (cell.published, cell.measured.mean, cell.measured.n) == (published, pytest.approx(published + 1.5), 2)
    assert cell.difference == pytest.approx(1.5)
    assert sum(get_top1(line).measured is not None for line in table.lines) == 1
    assert len(table.lines) == len(load_published_table(number).rows) * len(load_published_table(number).column_bits)


def test_simsiam_pact_is_measured_by_a_training_for_each_bit_width():
    row = make_probe_row(90.0, "cifar_resnet18", bits="4w4a", method="SimSiam-PACT (our reconstruction)")
    for rows, bits in (([], "8,6,5,4,3,2w8a,2w4a"), ([row], "8,6,5,3,2w8a,2w4a")):
        table = compare_with_published(1, rows)
        command = f"ssql-det reproduce --preset paper --table 1 --methods SimSiam-PACT --bits {bits}"
        assert find_line(table, "SimSiam-PACT", "3w3a").measure_command == command
        assert find_line(table, "SimSiam-PACT", "FP").measure_command == ""  # nothing to measure
        assert any(note.startswith("SimSiam-PACT: our reconstruction") for note in table.notes) == bool(rows)


@pytest.mark.parametrize(
    ("number", "network", "name"),
    [
        (1, "resnet18", "ResNet-18, 7x7 stem"),
        (1, "cifar_resnet34", "ResNet-34"),
        (1, "narrow_resnet", "narrow ResNet"),
        (3, "cifar_resnet50", "ResNet-50, 3x3 stem"),
    ],
)
def test_a_row_of_another_network_has_no_published_value(number, network, name):
    line = find_line(
        compare_with_published(number, [make_probe_row(99.0, network, dataset=dataset(number))]), backbone=name
    )
    assert (get_top1(line).published, get_top1(line).measured.mean, get_top1(line).difference) == (None, 99.0, None)


@pytest.mark.parametrize("number", [1, 3, 8, 12])
def test_toy_rows_get_no_difference(number):
    networks = ("cifar_resnet18", "cifar_resnet34", "resnet50", "narrow_resnet")
    table = compare_with_published(
        number, [make_probe_row(99.0, network, dataset="crops") for network in networks], dataset="crops"
    )
    measured = [line for line in table.lines if get_top1(line).measured]
    assert len(measured) == len(networks)
    assert {get_top1(line).difference for line in table.lines} == {None}
    assert not table.is_comparable
    assert table.notes[0].startswith("crops is not the published table's dataset: not comparable")
    assert not any(
        get_top1(line).measured
        for line in compare_with_published(number, [make_probe_row(99.0, dataset="crops")]).lines
    )


def test_averages_over_bit_widths_are_made_by_checkpoint():
    values = {0: (91.0, 90.0, 89.0, 83.0, 86.0), 1: (92.0, 92.0, 90.0, 84.0, 87.0)}
    rows = [
        make_probe_row(value, "cifar_resnet34", bits=bits, seed=seed, checkpoint_hash=str(seed))
        for seed, seed_values in values.items()
        for bits, value in zip(WIDTHS, seed_values, strict=True)
    ]
    rows += [
        make_probe_row(10.0, "cifar_resnet34", bits="5w5a"),
        make_probe_row(70.0, "cifar_resnet34", seed=2, checkpoint_hash="2"),
    ]
    cell = get_top1(find_line(compare_with_published(8, random.Random(0).sample(rows, len(rows))), "(i)", "Avg."))
    assert cell.measured.mean == pytest.approx((439 / 5 + 445 / 5) / 2)
    assert (cell.measured.n, cell.published) == (2, 88.3)
    assert cell.difference == pytest.approx(88.4 - 88.3)
    of_one = compare_with_published(8, rows[:4])
    assert get_top1(find_line(of_one, "(i)", "Avg.")).measured is None
    assert "--bits 2w4a " in find_line(of_one, "(i)", "Avg.").measure_command
    without_value = [*rows[:4], make_probe_row(None, "cifar_resnet34", bits="2w4a", seed=0, checkpoint_hash="0")]
    line = find_line(compare_with_published(8, without_value), "(i)", "Avg.")
    assert (get_top1(line).measured, line.measure_command, line.is_published_only) == (None, "", False)


def test_rows_of_knn_alone_and_of_detectors_are_left_out():
    rows = [make_probe_row(metrics={"knn/top1": 80.0}), make_row(dataset="cifar10", scope="backbone"), make_row()]
    table = compare_with_published(1, rows)
    assert table.lines == compare_with_published(1, []).lines
    (note,) = (note for note in table.notes if note.startswith("Left out"))
    assert note.endswith(": 2 rows of cifar10, scope backbone; 1 row of voc_2007_test, scope all.")
    assert (
        compare_with_published(6, [make_probe_row(dataset="voc_2007_test", scope="all")]).lines
        == compare_with_published(6, []).lines
    )


@pytest.mark.parametrize(
    ("change", "config", "scheme", "calibration"),
    [
        ({"scheme": "act=mse"}, False, True, False),
        ({"overrides": {"layer4.*": "8w8a"}}, False, True, False),
        ({"calibration": Calibration(256, 0, "cifar10")}, False, False, True),
        ({"protocol": make_protocol("linear") | {"epochs": 60}}, True, False, False),
        ({"protocol": make_protocol("linear") | {"cached_views": 3}}, True, False, False),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_rows_that_differ_in_protocol_scheme_or_calibration_are_separate_lines(change, config, scheme, calibration):
    table = compare_with_published(1, [make_probe_row(90.0), make_probe_row(80.0, **change)])
    first, second = [line for line in table.lines if get_top1(line).measured]
    assert {get_top1(line).measured.mean for line in (first, second)} == {90.0, 80.0}
    assert (first.backbone, first.method) == (second.backbone, second.method) == ("ResNet-18", "SSQL (ours)")
    differs = (first.config != second.config, first.scheme != second.scheme, first.calibration != second.calibration)
    assert differs == (config, scheme, calibration)


def test_knn_beside_a_linear_probe_changes_nothing_and_costs_are_shown():
    metrics = {"knn/top1": 80.0, "linear/top1": 90.6, "MB": 5.5, "GBOPs": 12.0}
    table = compare_with_published(1, [make_probe_row(metrics=metrics, protocol=make_protocol("knn", "linear"))])
    assert table.metrics == ("linear/top1", "MB", "GBOPs")
    line = find_line(table, backbone="ResNet-18")
    assert (get_top1(line).difference, line.cells["MB"].measured) == (pytest.approx(0.5), Measurement(5.5, None, 1))
    assert (
        "ssql-det probe knn linear --checkpoint <ssql.pth> "
        in find_line(table, bits="FP", backbone="ResNet-18").measure_command
    )


def test_notes_describe_settings_and_epochs():
    notes = compare_with_published(3, [make_probe_row(50.0, "resnet18", dataset="imagenet", scheme="act=mse")]).notes
    assert notes[0] == (
        "Measured with config linear; fast: SGD, learning rate 30 for batch size 512, 100 epochs; "
        "cifar augmentation at 32 px, 50000 training and 10000 validation images; "
        "scheme act=mse; calibration 512 images of cifar10, seed 0."
    )
    assert "engine" not in notes[0]
    assert notes[1] == "The published backbones were pretrained for 100 epochs; measured rows do not record epochs."
    assert not any(
        "were pretrained for" in note
        for number in (6, 8)
        for note in compare_with_published(number, [make_row(), make_probe_row()]).notes
    )
    doubtful = [make_probe_row(), make_probe_row(checkpoint_hash="other")]
    assert any(
        note.startswith("ResNet-18 · SSQL (ours) at 4w4a averages 2 rows")
        for note in compare_with_published(1, doubtful).notes
    )
    assert (
        "(i): quantized predictions, auxiliary loss, weight bits 2 to 8, activation bits 4 to 8."
        in compare_with_published(8, []).notes
    )


def test_an_overview_separates_backbones():
    overview = build_overview_table(
        compare_with_published(1, [make_probe_row(90.6), make_probe_row(91.0, "cifar_resnet50")]), "linear/top1"
    )
    ssql_rows = [row for row in overview.rows if "SSQL (ours)" in row[0]]
    assert [row[:2] for row in ssql_rows] == [
        (f"{backbone} · SSQL (ours)", values)
        for backbone in ("ResNet-18", "ResNet-50")
        for values in ("published", "measured")
    ]
    assert len(overview.rows) == 13 + 2


COMMANDS = [
    (number, line)
    for number in (1, 3, 8)
    for line in compare_with_published(number, []).lines
    if line.measure_command and line.bits == "FP"
]


@pytest.mark.parametrize(
    ("number", "line"), COMMANDS, ids=[f"{number}-{line.backbone}-{line.method}" for number, line in COMMANDS]
)
def test_a_command_probes_the_checkpoint_of_its_config(number, line):
    """The config has that network, method and data, and writes its checkpoint where the command reads it."""
    probed, pretrained = line.measure_command.split(" # after ")
    options = make_parser().parse_args(shlex.split(probed)[1:])
    assert options.kind == ["linear"]
    assert "Avg." not in options.bits
    assert options.bits.split(",")[0] == "FP"
    file = shlex.split(pretrained)[-1]
    config = read_config(ROOT / file)
    assert options.checkpoint == str(Path(config.output_dir, "checkpoint.pth"))
    assert options.data == config.data.train
    assert options.protocol == "published"
    is_original_recipe = file.endswith("imagenet_r50_moco.yaml")  # MoCo's own checkpoint, of 200 epochs
    assert is_original_recipe or load_published_table(number).rows[0].epochs in (config.optim.epochs, None)
    row = make_probe_row(
        1.0, config.backbone, method=options.method or build_metadata(config).method, dataset=dataset(number)
    )
    assert get_top1(find_line(compare_with_published(number, [row]), line.method, backbone=line.backbone)).measured


def test_the_command_repeats_the_settings_of_existing_rows():
    table = compare_with_published(
        1,
        [
            make_probe_row(),
            make_probe_row(80.0, method="simclr", bits="FP"),
            make_probe_row(70.0, "narrow_resnet", method="x/y"),
        ],
    )
    protocol = (
        "linear; fast: SGD, learning rate 30 for batch size 512, 100 epochs; "
        "cifar augmentation at 32 px, 50000 training and 10000 validation images"
    )
    settings = f"# as in the existing rows: {protocol}; minmax; calibration: 512 images of cifar10, seed 0"
    ssql = find_line(table, bits="FP", backbone="ResNet-18")
    assert ssql.measure_command == (
        f"ssql-det probe linear --checkpoint <ssql.pth> --data cifar10:datasets --bits FP,8,6,5,3,2w8a,2w4a {settings}"
    )
    assert "<simclr.pth>" in find_line(table, "SimCLR", backbone="ResNet-18").measure_command
    assert not find_line(table, "SimCLR", backbone="ResNet-18").is_published_only
    assert "<simclr.pth>" not in find_line(table, "SimCLR", backbone="ResNet-50").measure_command
    assert "<x-y.pth>" in find_line(table, "x/y", "FP").measure_command


def test_on_other_data_the_command_names_them():
    table = compare_with_published(8, [], dataset="crops")
    assert find_line(table, "(i)", "FP").measure_command == (
        "ssql-det probe linear --checkpoint <ssql.pth> --data <crops> --bits FP,6,4,3,2w4a"
    )
    assert find_line(table, "(h)", "FP").measure_command == (
        "ssql-det probe linear --method '(h)' --checkpoint <h.pth> --data <crops> --bits FP,6,4,3,2w4a"
    )
