"""Matched norms and biases, against the moments of the float network."""

import copy

import pytest
import torch
from support.networks import D2ResNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, Quantization, Scheme, evaluate_at_bit_width, quant_points
from ssql_det.quant.hooks import hooking
from ssql_det.quant.points import QuantPoint, Side

LOW = Bits(2, 4)


def build_trained(network=D2ResNet):
    """A network in float64 whose norms have random gains and the statistics of other images than those of the tests."""
    torch.manual_seed(0)
    model = network().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(20):
            model(1.5 * torch.randn(4, 3, 32, 32, dtype=torch.float64) + 0.2)
    return model.eval()


def draw_images(count, seed=1):
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def calibrate(model, scheme, batches):
    quantization = Quantization(model, scheme=Scheme.parse(scheme))
    quantization.calibrate(batches)
    return quantization


def record_moments(model, paths, images):
    """The mean and the variance of each channel of the outputs of modules."""
    outputs = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda *args, path=path: outputs.update({path: args[-1].clone()})
        )
        for path in paths
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return {path: torch.stack(torch.var_mean(each, (0, 2, 3), correction=0)) for path, each in outputs.items()}


def freeze(model):
    """Replace BatchNorms by norms that have buffers alone, as Detectron2's FrozenBatchNorm2d."""
    from ssql_det.minid2.layers import FrozenBatchNorm2d

    return FrozenBatchNorm2d.convert_frozen_batchnorm(model)


@pytest.mark.parametrize("prepare", [lambda model: model, freeze], ids=["trained", "frozen"])
def test_matched_norms_have_the_output_moments_of_the_float_norms(prepare):
    model, images = prepare(build_trained()), draw_images(8)
    paths = [name for name, module in model.named_modules() if name.endswith("norm")]
    expected = record_moments(model, paths, images)
    quantization = calibrate(model, "norms=matched", [images])

    def measure():
        return record_moments(model, paths, images)

    before = calibrate(model, "minmax", [images])
    with before.at(LOW):
        as_trained = measure()
    matched = evaluate_at_bit_width(quantization, LOW, measure, batches=[images])
    assert len(paths) == 12
    for path in paths:
        (var, mean), (expected_var, expected_mean) = matched[path], expected[path]
        torch.testing.assert_close(mean, expected_mean)
        torch.testing.assert_close(var, expected_var, rtol=1e-2, atol=0)  # not exact, as eps is in the formula
    last = paths[-1]
    assert (as_trained[last] - expected[last]).abs().max() > 0.1


def test_matched_statistics_are_those_of_the_formula():
    model, images = build_trained(), draw_images(8)
    quantization = calibrate(model, "norms=matched", [images])
    quantization.correct_norms(LOW, [images])
    conv = model.stem.conv1
    stem = Quantization(model)
    stem.calibrate([images])
    with torch.no_grad():
        x = torch.conv2d(images, conv.weight, stride=2, padding=3)
        with stem.at(LOW):
            y = torch.conv2d(images, conv.weight, stride=2, padding=3)
    (v0, m0), (v, m) = (torch.var_mean(each, (0, 2, 3), correction=0) for each in (x, y))
    norm = conv.norm
    r = (v + norm.eps) / (v0 + norm.eps)
    tensors = quantization.repairs["2w4a"].tensors
    torch.testing.assert_close(tensors["stem.conv1.norm.running_mean"], m + (norm.running_mean - m0) * r.sqrt())
    torch.testing.assert_close(tensors["stem.conv1.norm.running_var"], (norm.running_var + norm.eps) * r - norm.eps)


def test_a_layer_without_norm_has_its_bias_corrected_before_its_activation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, bias=False)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Net().double().eval(), draw_images(8)
    own = copy.deepcopy(model.state_dict())
    expected = model(images).mean(0)
    quantization = calibrate(model, "biases=corrected", [images])
    quantization.correct_norms(LOW, [images])
    assert list(quantization.repairs["2w4a"].tensors) == ["conv.bias", "fc.bias"]
    outputs = []
    observe = QuantPoint("conv", Side.OUTPUT)
    with torch.no_grad(), hooking(model, observe, lambda x: outputs.append(x) or x):
        model(images)
        with quantization.at(LOW):
            torch.testing.assert_close(model(images).mean(0), expected)
    torch.testing.assert_close(outputs[1].mean((0, 2, 3)), outputs[0].mean((0, 2, 3)))
    assert all(torch.equal(each, own[name]) for name, each in model.state_dict().items())


def test_a_module_called_twice_is_matched_over_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.conv(x).flatten(2).mean(2), self.conv(2 * x[:, :, ::2]).flatten(2).mean(2)

    torch.manual_seed(0)
    model, images = Twice().double().eval(), draw_images(8)
    expected = model(images)
    quantization = calibrate(model, "biases=corrected", [images])
    quantization.correct_norms(LOW, [images])
    with torch.no_grad(), quantization.at(LOW):
        found = model(images)
    sizes = (30 * 30, 14 * 30)  # positions of each call
    means = [sum(size * each.mean(0) for size, each in zip(sizes, call, strict=True)) for call in (found, expected)]
    torch.testing.assert_close(*means)


def test_dead_channels_keep_their_variance_and_files_restore_the_corrections(tmp_path):
    model, images = build_trained(), draw_images(8)
    with torch.no_grad():
        model.stem.conv1.weight[0] = 0
    quantization = calibrate(model, "norms=matched", [images])
    quantization.correct_norms(LOW, [images])
    tensors = quantization.repairs["2w4a"].tensors
    assert tensors["stem.conv1.norm.running_var"][0] == model.stem.conv1.norm.running_var[0]
    quantization.save(tmp_path / "q.safetensors")
    restored = Quantization.load(tmp_path / "q.safetensors", model).repairs["2w4a"].tensors
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())


def test_full_precision_is_never_corrected():
    model, images = build_trained(), draw_images(4)
    expected = model(images)
    for norms in ("matched", "re-estimated"):
        quantization = calibrate(model, f"norms={norms}", [images])
        found = evaluate_at_bit_width(quantization, Bits.FP, lambda: model(images), batches=[images])
        assert torch.equal(found, expected)
        assert not quantization.repairs


def test_norms_and_biases_are_chosen_apart_and_what_is_not_there_is_refused():
    model, images = nn.Sequential(build_trained(), nn.Conv2d(32, 4, 1).double()).eval(), draw_images(4)
    points = (*quant_points(model), QuantPoint("1", Side.WEIGHT))
    corrected = {}
    for scheme in ("norms=matched", "biases=corrected", "norms=matched, biases=corrected"):
        quantization = Quantization(model, points, Scheme.parse(scheme))
        quantization.calibrate([images])
        quantization.correct_norms(LOW, [images])
        corrected[scheme] = {name.rpartition(".")[2] for name in quantization.repairs["2w4a"].tensors}
    norms = {"running_mean", "running_var"}
    assert list(corrected.values()) == [norms, {"bias"}, norms | {"bias"}]
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).double()
    with pytest.raises(UserError, match="norms=matched: this network has no norm with statistics"):
        calibrate(plain, "norms=matched", [images]).correct_norms(LOW, [images])
    with pytest.raises(UserError, match="biases=corrected needs the float network's means"):
        Scheme.parse("norms=re-estimated, biases=corrected")
