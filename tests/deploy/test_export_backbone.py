"""A backbone as an ONNX file: its features, and the sizes of images that it takes."""

from dataclasses import replace

import onnx
import onnxruntime
import pytest
import timm
import torch
from support.deploy.detectors import SOURCE
from support.detect.configs import randomize_norms

from ssql_det.backbones import build_backbone
from ssql_det.convert import Metadata
from ssql_det.core.errors import UserError
from ssql_det.deploy import Detector
from ssql_det.deploy.agreement import compare_features
from ssql_det.deploy.export import export_backbone, make_backbone_graph
from ssql_det.pretrain.checkpoint import PretrainedBackbone

pytestmark = pytest.mark.slow


def make_pretrained(backbone):
    return PretrainedBackbone(backbone, Metadata(), SOURCE)


def make_transformer():
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0)
    return replace(build_backbone("narrow_resnet"), module=module, name="vit")


BACKBONES = {
    "of any size": (lambda: build_backbone("narrow_resnet"), ["height", "width", 3], 192),
    "of a fixed size": (make_transformer, [32, 32, 3], 192),
}


@pytest.mark.parametrize(("make", "shape", "channels"), BACKBONES.values(), ids=BACKBONES)
def test_a_backbone_says_which_sizes_it_takes(make, shape, channels, tmp_path):
    torch.manual_seed(0)
    backbone, path = make(), tmp_path / "backbone.onnx"
    randomize_norms(backbone.module)
    backbone.module.train()
    assert export_backbone(make_pretrained(backbone), 32, path) == []
    assert backbone.module.training
    graph = make_backbone_graph(make_pretrained(backbone))
    found = compare_features(path, graph, 32, 4, threads=1)
    assert found["agrees"], found
    assert found["feature_difference"] < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == shape
    assert session.get_outputs()[0].shape == [1, channels]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    with pytest.raises(UserError, match="is a backbone, not a detector"):
        Detector(path)
    for parameter in graph.parameters():
        parameter.data.mul_(1.01)
    assert not compare_features(path, graph, 32, 1)["agrees"]


def test_a_backbone_without_a_tensor_of_features_is_refused(tmp_path):
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    backbone = replace(build_backbone("narrow_resnet"), module=Pair())
    with pytest.raises(UserError, match="narrow_resnet gives no single tensor of features, so it cannot be exported"):
        export_backbone(make_pretrained(backbone), 32, tmp_path / "a.onnx")
