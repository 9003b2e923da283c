"""What cannot be exported is one sentence: a package that is missing, a layer that torch cannot trace."""

import sys

import pytest
import torch
from support.deploy.detectors import CHECKPOINT, make_detector

from ssql_det.core.errors import UserError
from ssql_det.deploy.export import check_installed, export_detector


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"exporting needs {name}: pip install 'ssql_det\[deploy\]'"):
        check_installed()


class Asking(torch.nn.Module):
    """Decides in Python by a value."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Singular(torch.nn.Module):
    """Computes what ONNX does not have."""

    def forward(self, x):
        return x + torch.linalg.svdvals(x[0, 0])[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Asking(), r"detector\.backbone\.res2 \(Asking\) cannot be exported to ONNX: Could not guard on"),
        (Singular(), "the network cannot be exported to ONNX: .*svd"),
    ],
)
def test_a_part_that_torch_cannot_trace_is_named_in_one_sentence(layer, said, tmp_path, capfd):
    cfg, model = make_detector("C4")
    model.backbone.res2 = layer
    model.backbone.stages[0] = layer
    capfd.readouterr()
    with pytest.raises(UserError, match=said) as refused:
        export_detector(cfg, model, CHECKPOINT, "", tmp_path / "a.onnx")
    assert len(str(refused.value)) < 400
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bug_in_a_layer_stays_a_bug(tmp_path):
    class Wrong(torch.nn.Module):
        def forward(self, x):
            raise KeyError("planted")

    cfg, model = make_detector("C4")
    model.backbone.stem = Wrong()
    with pytest.raises(KeyError, match="planted"):
        export_detector(cfg, model, CHECKPOINT, "", tmp_path / "a.onnx")
