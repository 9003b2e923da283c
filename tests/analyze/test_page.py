"""The report, pictures and CSV files of analyses have the numbers of the analyses."""

import csv
import io

import cv2
import numpy as np
import pytest
import torch
from support.analyze.analyses import CLASSES, WIDTHS, make_analysis
from support.reproduce.fake_runs import check_page, find_tables

from ssql_det.analyze.analysis import Embedding, group_terms_by_features
from ssql_det.analyze.drawing import draw_embedding
from ssql_det.analyze.page import build_csv_files, build_page, read_terms
from ssql_det.report.blocks import Chart
from ssql_det.report.render_markdown import collect_image_files

SSQL, FOREIGN = make_analysis("ssql"), make_analysis("moco", "moco <b>`v2`", False, 1, ("conv1", "layer9.0.conv1"))


@pytest.fixture(scope="module")
def document():
    return build_page([SSQL, FOREIGN], "ssql-det analyze --checkpoints ssql.pth moco.pth")


def records(name):
    return list(csv.DictReader(io.StringIO(build_csv_files([SSQL, FOREIGN])[name])))


def test_every_term_has_a_csv_line_with_all_digits():
    lines = records("terms.csv")
    assert len(lines) == 3 * len(WIDTHS)
    by_key = {(line["checkpoint"], line["features"], line["bits"]): line for line in lines}
    for analysis in (SSQL, FOREIGN):
        for terms_by_bits in analysis.terms:
            for bits, terms in terms_by_bits.terms.items():
                line = by_key[analysis.name, terms_by_bits.kind, str(bits)]
                assert (line["method"], line["pairs"], float(line["spread"])) == (analysis.method, "30", 0.8)
                assert {name: float(line[name]) for name in vars(terms)} == vars(terms)


def test_terms_are_read_as_they_were_written():
    assert read_terms(build_csv_files([SSQL, FOREIGN])["terms.csv"]) == group_terms_by_features([SSQL, FOREIGN])


def test_every_layer_and_every_point_has_a_csv_line():
    lines = records("weights.csv")
    assert [(line["checkpoint"], line["layer"]) for line in lines] == [
        *(("ssql", "conv1"), ("ssql", "layer1.0.conv1")),
        *(("moco", "conv1"), ("moco", "layer9.0.conv1")),
    ]
    for line, layer in zip(lines, [*SSQL.layers, *FOREIGN.layers], strict=True):
        assert (int(line["weights"]), float(line["min"]), float(line["max"])) == (100, layer.minimum, layer.maximum)
        assert (float(line["std"]), float(line["kurtosis"])) == (layer.std, layer.kurtosis)
        assert (float(line["outliers"]), float(line["farthest"])) == (layer.outliers, layer.farthest)
        assert [float(line[f"error at {bits}"]) for bits in WIDTHS[1:]] == list(layer.errors.values())
    points = records("tsne.csv")
    assert len(points) == 2 * len(WIDTHS) * 24
    one = points[24 + 5]
    assert (one["checkpoint"], one["bits"], one["image"], one["class"]) == ("ssql", "8w8a", "5.png", "class 5")
    assert [float(one["x"]), float(one["y"])] == SSQL.embedding.coordinates[WIDTHS[1]][5].tolist()


def test_the_report_has_both_formats(document):
    shown, _ = check_page(document)
    assert {"Terms of the loss", "Weights", "t-SNE of the features", "moco <b>'v2'"} <= {
        text.strip() for text in shown.texts
    }
    names = {"quantization-backbone.svg", "quantization-loss.svg", "tsne_ssql.png", "tsne_moco.png"}
    assert set(collect_image_files(document)) == names


def test_terms_are_side_by_side(document):
    backbone, loss = (table for table in find_tables(document, "checkpoint") if "term" in table.header)
    assert [row[:3] for row in backbone.rows[3:5]] == [("ssql", "0.80", "total"), ("moco", "0.80", "quantization")]
    assert {row[0] for row in loss.rows} == {"ssql"}
    terms = FOREIGN.terms[0].terms
    assert backbone.rows[4][3:] == tuple(f"{terms[bits].quantization:.4f}" for bits in WIDTHS)
    assert "Backbone only, because the file has no projector and predictor: moco." in " ".join(
        getattr(block, "text", "") for block in document.blocks
    )
    chart = next(block for block in document.blocks if isinstance(block, Chart))
    assert chart.curves[1].values == tuple(terms[bits].quantization for bits in WIDTHS)


def test_layers_are_side_by_side(document):
    (summary,) = (table for table in find_tables(document, "checkpoint") if "median" in table.header)
    heaviest = max(SSQL.layers, key=lambda layer: layer.kurtosis)
    assert summary.rows[0][:3] == ("ssql", heaviest.layer, f"{heaviest.kurtosis:.2f}")
    assert [row[-2:] for row in summary.rows] == [("0.0100", "0.5000"), ("0.0100", "0.6000")]
    by_layer = {table.caption: {row[0]: row[1:] for row in table.rows} for table in find_tables(document, "layer")}
    kurtosis = by_layer["Excess kurtosis"]
    assert kurtosis["conv1"] == tuple(f"{each.layers[0].kurtosis:.2f}" for each in (SSQL, FOREIGN))
    assert kurtosis["layer9.0.conv1"] == ("-", f"{FOREIGN.layers[1].kurtosis:.2f}")
    assert by_layer["Relative error at 2w4a"]["conv1"] == ("0.5000", "0.6000")


def draw_pixels(embedding):
    return cv2.imdecode(np.frombuffer(draw_embedding(embedding), np.uint8), cv2.IMREAD_COLOR)


def test_panels_have_the_same_axes():
    """Equal points are drawn alike, and a movement in one panel changes the scale of all."""
    still = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24) % len(CLASSES)
    two = draw_pixels(Embedding(dict(zip(WIDTHS[:2], (still, still), strict=True)), (), labels, CLASSES))
    assert np.array_equal(two[30:348, :320], two[30:348, 320:])
    moved = draw_pixels(Embedding(dict(zip(WIDTHS[:2], (still, still + 40), strict=True)), (), labels, CLASSES))
    first, second = moved[30:344, 4:316].min(2) < 255, moved[30:344, 324:636].min(2) < 255
    assert first[:200, 110:].sum() == 0 < first[200:, :110].sum()
    assert second[110:, :200].sum() == 0 < second[:110, 200:].sum()


def test_classes_have_different_markers():
    """Twelve classes of one point each; the legend has only the classes that occur."""
    points = torch.stack([torch.arange(12.0), torch.zeros(12)], 1)
    picture = draw_pixels(Embedding({WIDTHS[0]: points}, (), torch.arange(12), CLASSES))
    middle = 28 + 160
    marks = [
        picture[middle - 8 : middle + 8, x - 8 : x + 8] for x in (round(12 + 296 / 11 * index) for index in range(12))
    ]
    assert len({mark.tobytes() for mark in marks}) == 12
    few = draw_pixels(Embedding({WIDTHS[0]: points[:2]}, (), torch.tensor([0, 11]), CLASSES))
    assert few.shape[0] < picture.shape[0]


def test_panels_wrap_into_rows():
    embedding = Embedding(
        {f"{number}w": torch.randn(10, 2) for number in range(6)}, (), torch.zeros(10, dtype=torch.long), CLASSES
    )
    assert draw_pixels(embedding).shape[:2] == (2 * 348 + 34, 4 * 320)


def test_a_class_whose_name_is_no_text_is_drawn():
    labels = torch.zeros(10, dtype=torch.long)
    names = [Embedding({WIDTHS[0]: torch.ones(10, 2)}, (), labels, (name,)) for name in ("\\udcff", "\udcff")]
    assert np.array_equal(*map(draw_pixels, names))
