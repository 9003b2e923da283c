"""Model cards: the header as Hugging Face's hub reads it, the rows that belong to the file, and their place."""

import pytest
import yaml
from support.report.rows import make_probe_row, make_row

from ssql_det.cli._card import prepare_card
from ssql_det.core.errors import UserError
from ssql_det.core.rows import append_row
from ssql_det.report.model_card import BACKBONE, DETECTOR, CardSubject, build_card

METRICS = {"bbox/AP": 40.256, "bbox/AP50": 61.0, "MB": 2.5}
SUBJECT = CardSubject(
    "d.onnx", DETECTOR, {"pretraining": "SSQL", "config": ""}, "9f3c", "4w4a", "minmax", ("ssql-det run d.onnx",)
)


def make_rows(**changes):
    return [make_row(bits=bits, metrics=METRICS, **changes) for bits in ("FP", "8w8a", "4w4a")]


def read_header(card):
    start, header, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header), body


def test_the_header_has_the_metrics_of_the_files_bits():
    header, _ = read_header(build_card(SUBJECT, make_rows()))
    assert header["pipeline_tag"] == "object-detection"
    ((result,),) = (each["results"] for each in header["model-index"])
    assert result == {
        "task": {"type": "object-detection"},
        "dataset": {"name": "voc_2007_test", "type": "voc_2007_test"},
        "metrics": [{"type": "mean_average_precision", "name": "AP of boxes at 4w4a", "value": 40.26}],
    }


def test_the_text_has_full_precision_beside_them_and_what_the_file_is():
    _, text = read_header(build_card(SUBJECT, make_rows()))
    assert (
        "# d.onnx\n\n- pretraining: SSQL\n- bits: 4w4a\n- quantization: minmax\n- SHA-256 of the weights: 9f3c\n"
        in text
    )
    assert "| FP | 40.26 | 61.00 | - | 2.50 |\n| 4w4a | 40.26 |" in text
    assert "8w8a" not in text
    assert "```\nssql-det run d.onnx\n```" in text


def test_what_another_scheme_gave_is_not_said_of_the_file():
    others = [make_row(bits="4w4a", scheme="act=mse", metrics={"bbox/AP": 99.0})]
    assert build_card(SUBJECT, [*make_rows(), *others]) == build_card(SUBJECT, make_rows())


def test_a_backbone_has_all_its_bits():
    subject = CardSubject("b.pkl", BACKBONE, {}, "9f3c")
    header, text = read_header(build_card(subject, [make_probe_row(bits=bits) for bits in ("FP", "2w4a")]))
    values = [result["metrics"][0]["name"] for each in header["model-index"] for result in each["results"]]
    assert values == ["% top-1 of the linear probe at FP", "% top-1 of the linear probe at 2w4a"]
    assert "On cifar10; minmax, scope backbone, 512 images of cifar10, seed 0." in text


def test_rows_of_other_weights_are_left_out_and_an_error_if_there_are_no_others():
    others = make_rows(checkpoint_hash="other", checkpoint="other.pth")
    assert build_card(SUBJECT, [*make_rows(), *others]) == build_card(SUBJECT, make_rows())
    message = r"no row is of the weights of d\.onnx \(SHA-256 9f3c\.\.\.\); these are of other\.pth"
    with pytest.raises(UserError, match=message):
        build_card(SUBJECT, others)


def test_a_text_of_a_row_is_no_markup():
    _, text = read_header(build_card(SUBJECT, make_rows(dataset="[x](https://a.example) --- # y")))
    assert "](https" not in text


def test_only_a_card_is_replaced(tmp_path):
    append_row(tmp_path / "rows.jsonl", make_row(bits="4w4a"))
    rows, out = [str(tmp_path / "rows.jsonl")], tmp_path / "d.onnx"
    card = prepare_card(out, rows, SUBJECT)
    (tmp_path / "d.md").write_text(card)
    assert prepare_card(out, rows, SUBJECT) == card
    (tmp_path / "d.md").write_text("# my notes")
    with pytest.raises(UserError, match=r"--card would replace .*d\.md, which is no model card; move it away"):
        prepare_card(out, rows, SUBJECT)
    assert prepare_card(out, None, SUBJECT) is None
