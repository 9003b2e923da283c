"""Exported files, run by onnxruntime, against the engine: images of all sizes, and what is in the file."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.deploy.detectors import CHECKPOINT, make_detector
from support.detect.configs import random_images

import ssql_det
from ssql_det.d2 import ResizeShortestEdge
from ssql_det.deploy import Detector
from ssql_det.deploy.agreement import compare_detectors
from ssql_det.deploy.export import export_detector, export_graph
from ssql_det.deploy.metadata import InputRule, ModelMetadata
from ssql_det.deploy.operators import nms_rows
from ssql_det.deploy.selection import pool_regions

pytestmark = pytest.mark.slow
SIZES = ((1, 1), (32, 32), (33, 61), (31, 500), (300, 400), (128, 160))
MANY = {"TEST.DETECTIONS_PER_IMAGE": -1, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}


class Exported:
    """A detector, and its file."""

    def __init__(self, path, kind, **keys):
        self.cfg, self.model = make_detector(kind, **keys)
        self.path = path
        export_detector(self.cfg, self.model, CHECKPOINT, "tiny.yaml SEED 3", path)
        self.detector = Detector(path, threads=1)

    def compare(self, sizes, seed=2):
        return compare_detectors(
            self.detector, self.model, [[each] for each in random_images(len(sizes), sides=sizes, seed=seed)]
        )


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    """Finds no region in the smallest image, and one in the next."""
    keys = {"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 24}
    return Exported(tmp_path_factory.mktemp("c4") / "detector.onnx", "C4 with masks", **keys)


@pytest.fixture(scope="module")
def fpn(tmp_path_factory):
    """With all detections, and with norms that are folded into convs and others that are not."""
    return Exported(tmp_path_factory.mktemp("fpn") / "detector.onnx", "convs and group norms", **MANY)


# ---- against the engine


@pytest.mark.parametrize(("name", "sizes", "least"), [("c4", SIZES, 60), ("fpn", SIZES[1:], 150)])
def test_a_file_agrees_with_the_engine_on_images_of_all_sizes(name, sizes, least, request):
    exported = request.getfixturevalue(name)
    found = exported.compare(sizes)
    assert found.is_close, found
    assert found.detections > least
    assert found.box_difference < 1e-5
    assert found.score_difference < 1e-5
    assert found.mask_difference < 1e-5


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_a_photo_is_processed_as_by_the_engine(channels, fpn):
    detector = Detector(fpn.path, threads=1)
    rule = InputRule(channels, fpn.cfg.INPUT.MIN_SIZE_TEST, fpn.cfg.INPUT.MAX_SIZE_TEST)
    detector.metadata = replace(detector.metadata, input=rule)
    (inputs,) = random_images(1, sides=((200, 310),))
    photo = inputs["image"].permute(1, 2, 0).numpy()
    ordered = photo if channels == "RGB" else photo[:, :, ::-1]
    resized = ResizeShortestEdge([64, 64], rule.max_size).get_transform(ordered).apply_image(ordered)
    batch = [{"image": torch.from_numpy(resized.transpose(2, 0, 1).copy()), "height": 200, "width": 310}]
    with torch.no_grad():
        expected = fpn.model(batch)[0]["instances"]
    found = detector(photo)
    assert len(found) == len(expected) > 10
    np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.classes.tolist() == expected.pred_classes.tolist()
    assert (found.masks != expected.pred_masks.numpy()).mean() < 1e-4


def test_no_region_and_one_region(c4):
    images = random_images(2, sides=SIZES[:2], seed=2)
    for regions, inputs in enumerate(images):
        with torch.no_grad():
            pixels = c4.model.preprocess_image([inputs])
            (proposals,), _ = c4.model.proposal_generator(pixels, c4.model.backbone(pixels.tensor))
        assert len(proposals) == regions
        raw = c4.detector.detect_resized(inputs["image"].permute(1, 2, 0).contiguous().numpy())
        assert len(raw) == regions * c4.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        assert c4.detector.finish(raw, 40, 50).masks.shape == (len(raw), 40, 50)
        found = compare_detectors(c4.detector, c4.model, [[inputs]])
        assert found.is_close, found


def test_another_detector_does_not_agree_with_the_file(c4):
    other = copy.deepcopy(c4.model)
    with torch.no_grad():
        other.roi_heads.box_predictor.cls_score.bias[3] += 0.01
    (inputs,) = random_images(1)
    assert compare_detectors(c4.detector, c4.model, [[inputs]]).is_close
    found = compare_detectors(c4.detector, other, [[inputs]])
    assert not found.is_close
    assert found.score_difference > 1e-4


# ---- the file


def read_graph(path):
    model = onnx.load(path)
    return model, {output: node for node in model.graph.node for output in node.output}


@pytest.mark.parametrize("name", ["c4", "fpn"])
def test_the_file_is_valid_and_has_the_documented_inputs_and_outputs(name, request):
    exported = request.getfixturevalue(name)
    model, producers = read_graph(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    session = exported.detector.session
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["height", "width", 3])
    ]
    side = {"c4": 8, "fpn": 28}[name]
    assert [(each.name, each.type, each.shape) for each in session.get_outputs()] == [
        ("boxes", "tensor(float)", ["detections", 4]),
        ("scores", "tensor(float)", ["detections"]),
        ("classes", "tensor(int64)", ["detections"]),
        ("masks", "tensor(float)", ["detections", side, side]),
    ]
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == (2 if name == "c4" else 0)  # behind res5's last ReLU, for boxes and for masks
    assert not [node for node in norms if getattr(producers.get(node.input[0]), "op_type", "") == "Conv"]


def test_each_region_is_pooled_once(fpn):
    model, _ = read_graph(fpn.path)
    assert sum(node.op_type == "RoiAlign" for node in model.graph.node) == 2 * 4  # boxes and masks, four levels


def test_the_file_names_no_path_of_this_machine(fpn, tmp_path):
    content = fpn.path.read_bytes()
    folders = {str(Path(each.__file__).parent) for each in (ssql_det, torch, onnx)}
    words = {*folders, str(Path.home()), str(tmp_path), os.getcwd(), ".py", "site-packages"}
    assert not [word for word in words if len(word) > 1 and word.encode() in content]


def test_the_metadata_say_where_the_file_is_from(fpn):
    metadata = fpn.detector.metadata
    assert metadata == ModelMetadata(
        kind="detector",
        classes=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        category_ids=metadata.category_ids,
        input=InputRule("RGB", 64, fpn.cfg.INPUT.MAX_SIZE_TEST),
        weights={"file": "weights.pth", "sha256": "a" * 64},
        config="tiny.yaml SEED 3",
        versions=metadata.versions,
    )
    assert metadata.versions.keys() >= {"ssql_det", "torch", "onnx"}
    (text,) = [each.value for each in onnx.load(fpn.path).metadata_props]
    assert json.loads(text)["bits"] == "FP"


# ---- the operators in onnxruntime


class Selecting(torch.nn.Module):
    """Boxes from an image of 4 columns: the levels at which they are pooled, and NMS with two rows of scores."""

    def __init__(self, pooler):
        super().__init__()
        self.pooler = pooler

    def forward(self, image):
        boxes = image[..., 0].float() * 4 + image[..., 1].float() / 64
        maps = [image[None, None, :4, :4, 0].float()] * 4
        order, _ = pool_regions(self.pooler, maps, boxes)
        scores = image[:, :2, 2].t().float() - 100
        return order, nms_rows(boxes.expand(2, -1, -1), scores, 0.5, 0.0, 3)


def test_levels_and_nms_are_the_same_in_onnxruntime(tmp_path):
    pooler = make_detector("FPN")[1].roi_heads.box_pooler
    path, graph = tmp_path / "selecting.onnx", Selecting(pooler)
    outputs = {"order": ("boxes",), "found": ("found", 2)}
    metadata = ModelMetadata("backbone", (), (), InputRule("RGB", 0, 0))
    export_graph(graph, outputs, metadata, path, (12, 4), torch.export.Dim.AUTO)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    exact = [(0, 0, 28, 28), (0, 0, 56, 56), (0, 0, 112, 112), (0, 0, 224, 56), (1, 1, 57, 57), (3, 3, 3, 9)]
    for count in (1, 6, 40):
        image = generator.integers(0, 256, (count, 4, 3)).astype(np.uint8)
        image[:, :2, 0] //= 3
        image[:, :2, 0], image[:, 2:, 0] = image[:, :2, 0], np.maximum(image[:, 2:, 0], image[:, :2, 0])
        image[: len(exact), :, 0], image[: len(exact), :, 1] = exact[:count], 0
        image[count // 2 :, :, 2] = image[count // 2, 0, 2]  # ties
        expected = graph(torch.from_numpy(image))
        for ours, theirs in zip(session.run(None, {"image": image}), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs.numpy())
