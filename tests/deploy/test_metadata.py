"""The metadata of an exported file: read back as written, damaged ones refused, the size rule that of Detectron2."""

import json
from dataclasses import asdict

import pytest

from ssql_det.core.errors import UserError
from ssql_det.d2 import ResizeShortestEdge
from ssql_det.deploy.metadata import FORMAT, InputRule, ModelMetadata

DETECTOR = ModelMetadata(
    kind="detector",
    classes=("cat", "dög"),
    category_ids=(17, 18),
    input=InputRule("BGR", 800, 1333),
    bits="4w4a",
    scheme="act=mse",
    scope="all",
    weights={"file": "model_final.pth", "sha256": "9f3c"},
    config="toy_voc_narrow_c4",
    versions={"ssql_det": "0.1.0"},
)
BACKBONE = ModelMetadata("backbone", (), (), InputRule("RGB", 0, 0))


@pytest.mark.parametrize("metadata", [DETECTOR, BACKBONE])
def test_metadata_are_read_back_as_written(metadata):
    assert ModelMetadata.from_json(metadata.to_json(), "a.onnx") == metadata


def test_the_text_is_the_documented_one():
    content = json.loads(DETECTOR.to_json())
    assert content["format"] == FORMAT == 1
    assert content["input"] == {"channels": "BGR", "min_size": 800, "max_size": 1333}
    assert content["classes"] == ["cat", "dög"]


def test_what_a_later_version_adds_is_ignored():
    text = json.dumps({**json.loads(DETECTOR.to_json()), "comment": "new"})
    assert ModelMetadata.from_json(text, "a.onnx") == DETECTOR


def test_a_newer_format_asks_for_an_upgrade():
    for changed in ({"format": 2}, {"format": 7, "kind": "video"}):
        text = json.dumps({**json.loads(DETECTOR.to_json()), **changed})
        with pytest.raises(UserError, match=r"^a\.onnx is of format [27], made by a newer ssql_det; upgrade"):
            ModelMetadata.from_json(text, "a.onnx")


@pytest.mark.parametrize("key", ["format", *(asdict(DETECTOR))])
def test_a_missing_key_is_named(key):
    content = json.loads(DETECTOR.to_json())
    del content[key]
    with pytest.raises(UserError, match=rf"the metadata of a\.onnx is damaged: it has no '{key}'"):
        ModelMetadata.from_json(json.dumps(content), "a.onnx")


RULE = {"channels": "RGB", "min_size": 800, "max_size": 1333}
WRONG = {
    "format": ["1", 0, True, None, 1.5],
    "kind": ["segmenter", 3, ["detector"]],
    "classes": ["cat", ["cat", 2], {"cat": 1}, [], ["cat"]],
    "category_ids": [[17, 17], [17, "18"], [17, True], [17, -1], [17, 18.0], [17], [17, 10**400]],
    "input": [
        *([], {**RULE, "channels": "GRAY"}, {**RULE, "min_size": -1}, {**RULE, "max_size": 0}),
        *({**RULE, "min_size": 10**400}, {**RULE, "max_size": 1e9}, {"channels": "RGB"}),
    ],
    "bits": [4, None],
    "scheme": [{}],
    "scope": [None],
    "weights": [[], {"sha256": 5}],
    "config": [None],
    "versions": ["0.1.0", {"torch": 2.6}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused(key, value):
    text = json.dumps({**json.loads(DETECTOR.to_json()), key: value})
    with pytest.raises(UserError, match=r"the metadata of a\.onnx is damaged: .*; export the file again"):
        ModelMetadata.from_json(text, "a.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"format": NaN}', "[" * 99999, '{"format": 1e999}'])
def test_what_is_no_metadata_is_refused(text):
    with pytest.raises(UserError, match=r"the metadata of a\.onnx is damaged"):
        ModelMetadata.from_json(text, "a.onnx")


def test_sizes_are_those_of_detectron2():
    sides = [*range(1, 60), 127, 333, 480, 600, 601, 640, 799, 800, 801, 1066, 1333, 1334, 1999, 4032, 9000]
    for min_size, max_size in ((800, 1333), (240, 320), (101, 103), (7, 2000), (1, 1)):
        rule = InputRule("RGB", min_size, max_size)
        for height in sides:
            for width in sides:
                expected = ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
                assert rule.get_size(height, width) == expected, (height, width, rule)


def test_a_least_size_of_0_leaves_the_image_as_it_is():
    assert InputRule("RGB", 0, 10).get_size(5000, 3) == (5000, 3)
