"""A detector as an ONNX file: what goes into the network, what is made of its outputs, and files that are refused."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from support.deploy.onnx_files import (
    METADATA,
    TYPES,
    make_outputs,
    write_backbone,
    write_colour_detector,
    write_constant_detector,
    write_model,
)

from ssql_det.core.errors import UserError
from ssql_det.d2 import ResizeShortestEdge
from ssql_det.deploy import Detector
from ssql_det.deploy.metadata import InputRule
from ssql_det.deploy.postprocess import RawDetections, finish_detections
from ssql_det.minid2.modeling.postprocessing import detector_postprocess
from ssql_det.minid2.structures import Boxes, Instances

RED, GREEN, BLUE = range(3)
SIZES = [(64, 64, 64, 64), (64, 48, 480, 360), (37, 61, 1, 1), (61, 37, 200, 3), (33, 64, 471, 913)]


def colour(*rgb, size=(40, 80)):
    return np.full((*size, 3), rgb, np.uint8)


def make_photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# ---- what goes into the network


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("shape", [(480, 640), (20, 30), (1, 1), (32, 64), (1, 40), (500, 31)])
def test_an_image_is_prepared_as_the_engine_does(channels, shape, tmp_path):
    rule = InputRule(channels, min_size=32, max_size=64)
    detector = Detector(write_colour_detector(tmp_path / "a.onnx", replace(METADATA, input=rule)))
    photo = make_photo(*shape)
    ordered = photo if channels == "RGB" else photo[:, :, ::-1]
    expected = ResizeShortestEdge([32, 32], 64).get_transform(ordered).apply_image(ordered)
    prepared = detector.prepare(photo)
    assert prepared.flags.c_contiguous
    np.testing.assert_array_equal(prepared, expected)
    np.testing.assert_array_equal(detector.prepare(Image.fromarray(photo)), expected)


@pytest.mark.parametrize(("channels", "index"), [("RGB", RED), ("BGR", BLUE)])
def test_the_network_sees_the_order_of_channels_that_the_metadata_name(channels, index, tmp_path):
    rule = InputRule(channels, min_size=32, max_size=64)
    detector = Detector(write_colour_detector(tmp_path / "a.onnx", replace(METADATA, input=rule)))
    found = detector(colour(204, 0, 51))
    assert found.classes.tolist() == [index]
    np.testing.assert_allclose(found.scores, [0.8])


def test_modes_of_pillow_are_read_as_colours(tmp_path):
    detector = Detector(write_colour_detector(tmp_path / "a.onnx"))
    transparent = Image.new("RGBA", (80, 40), (0, 102, 0, 7))
    gray = Image.new("L", (80, 40), 102)
    np.testing.assert_allclose(detector(transparent).scores, [0.4])
    assert detector(transparent).classes.tolist() == [GREEN]
    np.testing.assert_allclose(detector(gray).scores, [0.4])


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg", exif=exif)
    found = Detector(write_colour_detector(tmp_path / "a.onnx"))(Image.open(tmp_path / "a.jpg"))
    assert found.boxes.tolist() == [[0, 0, 40, 80]]


def test_an_image_too_narrow_for_the_rule_is_a_mistake(tmp_path):
    detector = Detector(write_colour_detector(tmp_path / "a.onnx"))
    with pytest.raises(UserError, match="an image of 9000 x 1 pixels is too narrow"):
        detector(np.zeros((1, 9000, 3), np.uint8))


# ---- what is made of the outputs


def engine_postprocess(outputs, size, height, width):
    instances = Instances(size, pred_boxes=Boxes(torch.tensor(outputs["boxes"])))
    instances.scores = torch.tensor(outputs["scores"])
    instances.pred_classes = torch.tensor(outputs["classes"])
    if "masks" in outputs:
        instances.pred_masks = torch.tensor(outputs["masks"])[:, None]
    return detector_postprocess(instances, height, width)


@pytest.mark.parametrize(("resized_height", "resized_width", "height", "width"), SIZES)
def test_detections_are_those_of_the_engine(resized_height, resized_width, height, width):
    size = (resized_height, resized_width)
    outputs = make_outputs(40, size, mask_side=28)
    expected = engine_postprocess(outputs, size, height, width)
    found = finish_detections(RawDetections(**outputs, size=size), height, width, METADATA.classes)
    assert 0 < len(found) < 40
    assert found.boxes.dtype == np.float32
    np.testing.assert_array_equal(found.boxes, expected.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(found.scores, expected.scores.numpy())
    np.testing.assert_array_equal(found.classes, expected.pred_classes.numpy())
    differing = found.masks != expected.pred_masks.numpy()
    assert differing.mean() < 1e-5  # a probability within a rounding of the threshold


def test_the_engine_loses_boxes_that_scaling_makes_empty_and_so_do_we():
    boxes = np.float32([[1e-45, 0, 2e-45, 4], [0, 0, 4, 4]])
    outputs = {"boxes": boxes, "scores": np.float32([0.9, 0.8]), "classes": np.array([0, 0])}
    expected = engine_postprocess(outputs, (8, 8), 1, 1)
    found = finish_detections(RawDetections(**outputs, masks=None, size=(8, 8)), 1, 1, METADATA.classes)
    assert len(expected) == len(found) == 1


def test_the_least_score_is_a_detection_still():
    outputs = make_outputs(40)
    raw = RawDetections(**outputs, masks=None, size=(64, 64))
    everything = finish_detections(raw, 64, 64, METADATA.classes)
    least = float(everything.scores[11])
    assert len(finish_detections(raw, 64, 64, METADATA.classes, least)) == 12


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("mask_side", [None, 28])
def test_few_detections_have_the_shapes_of_many(count, mask_side, tmp_path):
    outputs = make_outputs(count + 1, mask_side=mask_side, seed=3)
    outputs["boxes"][:] = [1, 2, 30, 40]
    outputs = {name: array[:count] for name, array in outputs.items()}
    detector = Detector(write_constant_detector(tmp_path / "a.onnx", outputs))
    found = detector(make_photo(100, 50))
    assert len(found) == count
    assert (found.boxes.shape, found.boxes.dtype) == ((count, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((count,), np.float32)
    assert (found.classes.shape, found.classes.dtype) == ((count,), np.int64)
    assert found.class_names == METADATA.classes
    if mask_side:
        assert (found.masks.shape, found.masks.dtype) == ((count, 100, 50), bool)
    else:
        assert found.masks is None


def test_a_mask_lies_where_the_object_is(tmp_path):
    detector = Detector(write_colour_detector(tmp_path / "a.onnx", has_masks=True))
    (mask,) = detector(colour(255, 0, 0, size=(50, 100))).masks
    assert mask[1:-1, 1:50].all()  # at the corners the engine interpolates with the zeros outside
    assert not mask[:, 50:].any()


@pytest.mark.parametrize("shape", [(1, 1), (10, 200)])
def test_the_smallest_and_a_wide_image(shape, tmp_path):
    found = Detector(write_colour_detector(tmp_path / "a.onnx", has_masks=True))(colour(0, 0, 255, size=shape))
    height, width = shape
    assert found.boxes.tolist() == [[0, 0, width, height]]
    assert found.classes.tolist() == [BLUE]
    assert found.masks.shape == (1, *shape)


def test_the_steps_make_the_call(tmp_path):
    detector = Detector(write_colour_detector(tmp_path / "a.onnx", has_masks=True), threads=1)
    photo = make_photo(90, 51)
    raw = detector.detect_resized(detector.prepare(photo))
    assert (len(raw), raw.size) == (1, (56, 32))
    by_steps, at_once = detector.finish(raw, 90, 51), detector(photo)
    for name in ("boxes", "scores", "classes", "masks"):
        np.testing.assert_array_equal(getattr(by_steps, name), getattr(at_once, name))


# ---- files that are refused


def refuse(path, said):
    with pytest.raises(UserError, match=said):
        Detector(path)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = write_colour_detector(tmp_path / "whole.onnx", has_masks=True).read_bytes()
    path = tmp_path / "cut.onnx"
    for length in (0, 1, 2, 7, *range(20, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.onnx (is not an ONNX file|was not written by|is damaged)"):
            Detector(path)


def test_noise_is_refused(tmp_path):
    for seed in range(20):
        (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(seed).bytes(50 * seed))
        refuse(tmp_path / "noise.onnx", r"noise\.onnx is not an ONNX file that onnxruntime \S+ can open")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": 1}', '{"format": "one"}'])
def test_damaged_metadata_are_refused(text, tmp_path):
    refuse(write_colour_detector(tmp_path / "a.onnx", text), r"the metadata of .*a\.onnx is damaged: ")


def test_files_of_others_are_refused(tmp_path):
    later = METADATA.to_json().replace('"format": 1', '"format": 2')
    refuse(tmp_path / "no.onnx", r"there is no file .*no\.onnx")
    refuse(tmp_path, "is a directory, not a file")
    refuse(write_colour_detector(tmp_path / "a.onnx", None), "was not written by `ssql-det export`")
    refuse(write_colour_detector(tmp_path / "a.onnx", later), "made by a newer ssql_det; upgrade")
    refuse(write_backbone(tmp_path / "a.onnx"), "is a backbone, not a detector")


def test_a_file_without_the_contract_is_refused(tmp_path):
    nodes = [helper.make_node("Cast", ["image"], ["boxes"], to=TensorProto.FLOAT)]
    boxes = {"boxes": TensorProto.FLOAT}
    refuse(write_model(tmp_path / "a.onnx", nodes, boxes, METADATA), "is damaged: it has no output 'scores'")
    refuse(write_model(tmp_path / "a.onnx", nodes, boxes, METADATA, TensorProto.FLOAT), "its input must be 'image'")


GOOD = make_outputs(3, mask_side=28)
BROKEN = {
    "boxes of three numbers": ({"boxes": GOOD["boxes"][:, :3]}, "wrong types or shapes"),
    "a box": ({"boxes": np.float32(1)}, "wrong types or shapes"),
    "double boxes": ({"boxes": GOOD["boxes"].astype(np.float64)}, "wrong types or shapes"),
    "too few scores": ({"scores": GOOD["scores"][:2]}, "wrong types or shapes"),
    "classes in float": ({"classes": GOOD["classes"].astype(np.float32)}, "wrong types or shapes"),
    "oblong masks": ({"masks": GOOD["masks"][:, :20]}, "wrong types or shapes"),
    "box of NaN": ({"boxes": np.full_like(GOOD["boxes"], np.nan)}, "infinite values or NaN"),
    "infinite score": ({"scores": np.full_like(GOOD["scores"], np.inf)}, "infinite values or NaN"),
    "class that is none": ({"classes": np.array([0, 1, 3])}, "classes other than 0 to 2"),
    "class below zero": ({"classes": np.array([0, 1, -1])}, "classes other than 0 to 2"),
}


@pytest.mark.parametrize(("changed", "said"), BROKEN.values(), ids=BROKEN)
def test_outputs_that_are_no_detections_are_refused(changed, said, tmp_path):
    detector = Detector(write_constant_detector(tmp_path / "a.onnx", {**GOOD, **changed}))
    with pytest.raises(UserError, match=said):
        detector(colour(0, 0, 0))


def test_a_failure_in_the_network_names_the_file(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["bad"], value=onnx.numpy_helper.from_array(np.array([7, 7], np.int64))),
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "bad"], ["boxes"]),
        helper.make_node("Identity", ["boxes"], ["scores"]),
        helper.make_node("Cast", ["boxes"], ["classes"], to=TensorProto.INT64),
    ]
    detector = Detector(write_model(tmp_path / "a.onnx", nodes, TYPES, METADATA))
    with pytest.raises(UserError, match=r"a\.onnx failed on an input of 64 x 32 pixels: .*Reshape"):
        detector(colour(0, 0, 0))


def test_without_onnxruntime_it_says_what_to_install(tmp_path, monkeypatch):
    path = write_colour_detector(tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refuse(path, r"pip install 'ssql_det\[deploy\]'")
