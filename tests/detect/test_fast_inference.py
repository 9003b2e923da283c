"""Fast inference equals the engine's up to float rounding, and restores the model."""

import pytest
import torch
from support.detect.configs import C4, FPN, config, random_images, randomize_norms, select_boxes_in_float32
from torch import nn

from ssql_det.d2 import FrozenBatchNorm2d
from ssql_det.detect import detector_points
from ssql_det.detect.detector import build_detector
from ssql_det.detect.evaluation import fast_inference
from ssql_det.detect.quantized_evaluation import calibrate_detector
from ssql_det.quant import Bits, Quantization, Side
from ssql_det.quant.hooks import recording_outputs

NORMS = {"BN": {}, "FrozenBN": {"MODEL__RESNETS__NORM": "FrozenBN", "MODEL__FPN__NORM": "", "SSQL_DET__EXTRA_NORM": ""}}
CASES = [(name, norm) for name in (C4, FPN) for norm in NORMS]


def detector(name, norm="BN", dtype=torch.float64):
    """Half of the norms' weights are negative: there folding before quantization would go wrong."""
    torch.manual_seed(0)
    model = randomize_norms(build_detector(config(name, **NORMS[norm])))
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
            module.weight.data[::2] *= -1
    return select_boxes_in_float32(model.double()) if dtype == torch.float64 else model


def calibrated_detector(name, norm="BN", dtype=torch.float64):
    model = detector(name, norm, dtype)
    quantization, batches = Quantization(model, detector_points(model, "all")), [[each] for each in random_images(3)]
    calibrate_detector(quantization, batches)
    return model, quantization, batches


SINKS = ("proposal_generator.rpn_head.objectness_logits", "roi_heads.box_predictor.cls_score")


@pytest.mark.parametrize("bits", ["FP", "8w8a", "4w4a"])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_fast_inference_gives_the_same_detections(name, norm, bits):
    model, quantization, batches = calibrated_detector(name, norm)
    with torch.no_grad(), quantization.at(Bits.parse(bits)):
        with recording_outputs(model, SINKS) as plain:
            detections = [model(batch)[0]["instances"] for batch in batches]
        with fast_inference(model), recording_outputs(model, SINKS) as found:
            again = [model(batch)[0]["instances"] for batch in batches]
    assert len(plain) == len(found) > 2 * len(batches) - 1
    for one, other in zip(plain, found, strict=True):
        assert (one - other).abs().max() <= 1e-6 * one.abs().max()  # boxes are in float32 between them
    for one, other in zip(detections, again, strict=True):
        assert len(one) == len(other) > 0
        assert torch.equal(one.pred_classes, other.pred_classes)
        assert (one.pred_boxes.tensor - other.pred_boxes.tensor).abs().max() < 1e-3


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_no_folded_norm_is_computed(name, norm):
    model = detector(name, norm)
    norms = [path for path, module in model.named_modules() if path.endswith(".norm")]
    norms = [path for path in norms if isinstance(model.get_submodule(path.removesuffix(".norm")), nn.Conv2d)]
    with recording_outputs(model, norms) as seen, torch.no_grad():
        with fast_inference(model):
            model([random_images(1)[0]])
        assert not seen
        model([random_images(1)[0]])
    assert len(seen) >= len(norms) > 3


@pytest.mark.parametrize("name", [C4, FPN])
def test_few_activations_move_to_the_next_step_in_float32(name):
    """Rounding tips over where a float differs; the share of it is what a published AP could be moved by."""
    model, quantization, batches = calibrated_detector(name, dtype=torch.float32)
    outputs = [
        point for point in quantization.points if point.side is Side.OUTPUT and point.path.startswith("backbone")
    ]
    paths = [point.path for point in outputs]
    for bits in (Bits(8, 8), Bits(4, 4)):
        with torch.no_grad(), quantization.at(bits):
            with recording_outputs(model, paths) as plain:
                model(batches[0])
            with fast_inference(model), recording_outputs(model, paths) as found:
                model(batches[0])
        scales = [quantization[point].get_qparams(point.bits or bits.act).scale for point in outputs]
        steps = torch.cat([(a - b).flatten() / scale for a, b, scale in zip(plain, found, scales, strict=True)]).round()
        assert steps.abs().max() <= 1
        assert (steps != 0).double().mean() < 0.01  # one that tips over moves those behind it


def test_the_model_is_restored_and_its_state_dict_is_unchanged_inside():
    model = detector(C4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {path: dict(vars(module)) for path, module in model.named_modules()}
    with fast_inference(model):
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for state in (inside, model.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    for path, module in model.named_modules():
        assert {name: id(value) for name, value in vars(module).items()} == {
            name: id(value) for name, value in attributes[path].items()
        }


def test_the_model_is_restored_after_an_exception():
    model = detector(FPN)
    weight = model.backbone.fpn_output2.weight

    def fail():
        with fast_inference(model):
            assert model.backbone.fpn_output2.weight is not weight
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.backbone.fpn_output2.weight is weight
