"""Exported detectors in OpenVINO: how a file is opened, and, where it is installed, what it detects."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.deploy.detectors import make_detector
from support.deploy.onnx_files import METADATA, write_colour_detector
from support.detect.configs import random_images

from ssql_det.convert import Checkpoint, get_architecture
from ssql_det.core.errors import UserError
from ssql_det.deploy import Detector
from ssql_det.deploy.export import export_detector
from ssql_det.deploy.openvino_detector import OpenVINODetector, has_openvino


class FakeModel:
    """Of a sort and a conv, with metadata or without."""

    def __init__(self, metadata):
        self.metadata, self.attributes = metadata, []
        self.outputs = [SimpleNamespace(get_any_name=lambda name=name: name) for name in ("boxes", "scores", "classes")]

    def get_ops(self):
        def set_attribute(*each):
            self.attributes.append(each)

        kinds = ("TopK", "Convolution", "TopK")
        return [SimpleNamespace(get_type_name=lambda kind=kind: kind, set_attribute=set_attribute) for kind in kinds]

    def has_rt_info(self, names):
        return names == ["framework", "ssql_det"] and self.metadata is not None

    def get_rt_info(self, names):
        return SimpleNamespace(astype=lambda kind: self.metadata)

    def create_infer_request(self):
        return SimpleNamespace(infer=lambda inputs: None, get_tensor=lambda name: SimpleNamespace(data=FOUND[name]))


FOUND = {"boxes": np.float32([[1, 2, 30, 40]]), "scores": np.float32([0.5]), "classes": np.array([1])}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A module ``openvino``: what it was asked for, and a file."""
    asked = SimpleNamespace(model=FakeModel(METADATA.to_json()), options=None, file=tmp_path / "detector.onnx")
    asked.file.write_bytes(b"read by nobody")

    class Core:
        def read_model(self, path):
            if asked.model is None:
                raise RuntimeError("Unable to read\nthe model")
            return asked.model

        def compile_model(self, model, device, options):
            assert (model, device) == (asked.model, "CPU")
            asked.options = options
            return model

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    return asked


def test_a_file_is_computed_in_float32_and_sorts_are_stable(fake):
    found = OpenVINODetector(fake.file, threads=3)(np.zeros((40, 40, 3), np.uint8))
    assert fake.options["INFERENCE_PRECISION_HINT"] == "f32"
    assert fake.options["INFERENCE_NUM_THREADS"] == 3
    assert fake.model.attributes == [("stable", True)] * 2
    assert found.class_names == METADATA.classes
    assert found.classes.tolist() == [1]


def test_faults_of_a_file_are_named(fake, tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*missing\.onnx"):
        OpenVINODetector(tmp_path / "missing.onnx")
    fake.model = FakeModel(None)
    with pytest.raises(UserError, match="was not written by `ssql-det export`"):
        OpenVINODetector(fake.file)
    fake.model = None
    with pytest.raises(UserError, match="cannot be opened with OpenVINO: Unable to read the model"):
        OpenVINODetector(fake.file)


def test_without_openvino_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not has_openvino()
    with pytest.raises(UserError, match=r"pip install 'ssql_det\[openvino\]', or without torch pip install openvino"):
        OpenVINODetector(write_colour_detector(tmp_path / "a.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["C4", "FPN with masks", "no detection"])
def test_floats_have_the_detections_of_onnxruntime(kind, tmp_path):
    pytest.importorskip("openvino")
    cfg, model = make_detector(kind)
    checkpoint = Checkpoint(get_architecture("narrow_resnet"), {})
    export_detector(cfg, model, checkpoint, "by hand", tmp_path / "a.onnx")
    detectors = Detector(tmp_path / "a.onnx", threads=1), OpenVINODetector(tmp_path / "a.onnx", threads=1)
    for inputs in (*random_images(3), {"image": np.zeros((3, 50, 60), np.uint8)}):
        image = np.ascontiguousarray(np.asarray(inputs["image"]).transpose(1, 2, 0))
        expected, found = (each.detect_resized(image) for each in detectors)
        assert len(found) == len(expected)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        if expected.masks is not None:
            np.testing.assert_allclose(found.masks, expected.masks, atol=1e-4)
