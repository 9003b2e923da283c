"""Modes on whole networks: against a forward written out by hand, and what a block leaves behind."""

import copy
from contextlib import nullcontext

import ddp_step
import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import CifarResNet, D2ResNet, PlainNet
from plain import Round, clamp
from torch import nn
from torch.nn.utils import parametrizations

from ssql_det.core.errors import UserError
from ssql_det.core.ranks import launch
from ssql_det.quant import Bits, QuantPoint, Ranges, Side, calibrate, observing, quant_points, quantized

WIDTHS = ["2w4a", "4w4a", "5w8a", "8w8a"]


def network(name="resnet18", dtype=torch.float32):
    torch.manual_seed(0)
    return torchvision.models.get_model(name).to(dtype).train()


def images(count=2, size=32, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def observed(model, x):
    points = quant_points(model)
    with observing(model, points) as ranges, torch.no_grad():
        model(x)
    return points, ranges


# ---- a ResNet-18 forward written out: no hooks, no module of ours ------------------------------------------------


def by_hand_weight(weight, bits):
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / ((2**bits - 1) / 2)
    return clamp(Round.apply(weight / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


class ByHand:
    """Two passes over the same images: ``bits=None`` keeps every activation's range, then bits quantize by them."""

    def __init__(self, model):
        self.model, self.ranges = model, {}

    def act(self, name, x, bits):
        if bits is None:
            self.ranges[name] = (x.detach().min(), x.detach().max())
            return x
        low, high = self.ranges[name]
        scale = (high - low) / (2**bits - 1)
        zero = -torch.round(low / scale)
        return (clamp(Round.apply(x / scale) + zero, 0, 2**bits - 1) - zero) * scale

    def conv(self, layer, x, bits):
        weight = layer.weight if bits is None else by_hand_weight(layer.weight, bits)
        return F.conv2d(x, weight, None, layer.stride, layer.padding)

    def norm(self, layer, x):
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)

    def __call__(self, x, weight_bits=None, act_bits=None):
        net = self.model
        stem_weight, stem_act = (None, None) if weight_bits is None else (8, 8)
        x = F.relu(self.norm(net.bn1, self.conv(net.conv1, x, stem_weight)))
        x = F.max_pool2d(self.act("stem", x, stem_act), 3, 2, 1)
        for number, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
            for index, block in enumerate(stage):
                out = F.relu(self.norm(block.bn1, self.conv(block.conv1, x, weight_bits)))
                out = self.act(f"{number}.{index}.mid", out, act_bits)
                out = self.norm(block.bn2, self.conv(block.conv2, out, weight_bits))
                if block.downsample is not None:
                    x = self.norm(block.downsample[1], self.conv(block.downsample[0], x, weight_bits))
                x = self.act(f"{number}.{index}.out", F.relu(out + x), act_bits)
        return net.fc(x.mean((2, 3)))


@pytest.mark.parametrize("text", WIDTHS)
def test_resnet18_in_training_equals_the_forward_written_out(text):
    bits, x = Bits.parse(text), images()
    model = network()
    points, ranges = observed(model, x)
    with quantized(model, points, ranges, bits):
        ours = model(x)
    by_hand = ByHand(model)
    by_hand(x)
    assert torch.equal(ours, by_hand(x, bits.weight, bits.act))


@pytest.mark.parametrize("text", ["2w4a", "5w8a"])
def test_resnet18_gradients_equal_those_of_the_forward_written_out(text):
    bits, x = Bits.parse(text), images(dtype=torch.float64)
    model = network(dtype=torch.float64)
    points, ranges = observed(model, x)
    with quantized(model, points, ranges, bits):
        model(x).square().sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    by_hand = ByHand(model)
    by_hand(x)
    by_hand(x, bits.weight, bits.act).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (ours[name] - parameter.grad).abs().max() <= 1e-9 * parameter.grad.abs().max(), name


# ---- what a block leaves behind ----------------------------------------------------------------------------------


def fingerprint(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    shadows = [name for name, module in model.named_modules() if "weight" in module.__dict__]
    return list(model.state_dict()), [id(parameter) for parameter in model.parameters()], hooks, shadows


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_block_leaves_no_trace_at_any_width(name):
    model, x = network(name).train(), images()
    frozen = copy.deepcopy(model)
    before = fingerprint(model)
    for text in WIDTHS:
        model.load_state_dict(frozen.state_dict())
        float_before = copy.deepcopy(model)(x)
        points, ranges = observed(copy.deepcopy(model), x)
        with quantized(model, points, ranges, Bits.parse(text)):
            inside = model(x)
            assert list(model.state_dict()) == before[0]
            assert [id(parameter) for parameter in model.parameters()] == before[1]
            saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert fingerprint(model) == before
        assert not torch.equal(inside, float_before)
        weights = dict(frozen.named_parameters())
        assert all(torch.equal(saved[name], weights[name]) for name in weights)  # float ones, also inside
        assert torch.equal(model(x), float_before)


def test_deepcopy_works_after_a_step():
    model, x = network(), images()
    points, ranges = observed(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with quantized(model, points, ranges, Bits(4, 4)):
        loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))


def test_an_exception_inside_restores_everything():
    model, x = network(), images()
    points, ranges = observed(model, x)
    before = fingerprint(model)
    for block in (observing(model, points), quantized(model, points, ranges, Bits(4, 4))):
        with pytest.raises(ZeroDivisionError), block:
            raise ZeroDivisionError
        assert fingerprint(model) == before
    unknown = [*points, QuantPoint("layer9", Side.OUTPUT)]
    for block in (observing(model, unknown), quantized(model, unknown, None, Bits(4, None))):
        with pytest.raises(UserError, match="no module layer9: the points are of another model; did you mean 'layer"):
            block.__enter__()
        assert fingerprint(model) == before


def test_the_innermost_block_decides_and_the_outer_one_comes_back():
    model, x = network().eval(), images()
    points, ranges = observed(model, x)
    plain = model(x)
    with quantized(model, points, ranges, Bits(4, 4)):
        four = model(x)
        with quantized(model, points, ranges, Bits(8, 8)):
            eight = model(x)
            with quantized(model, points, ranges, Bits.FP):
                assert torch.equal(model(x), plain)
            assert torch.equal(model(x), eight)
        assert torch.equal(model(x), four)
        with observing(model, points) as again:
            assert torch.equal(model(x), plain)
        assert again == ranges
        assert torch.equal(model(x), four)
        with pytest.raises(ZeroDivisionError), quantized(model, points, ranges, Bits(2, 2)):
            raise ZeroDivisionError
        assert torch.equal(model(x), four)
    with quantized(model, points, ranges, Bits(8, 8)):
        assert torch.equal(model(x), eight)  # eight bits are those of the float weights, not of the four-bit ones
    assert torch.equal(model(x), plain)


def test_an_inner_block_over_some_points_leaves_the_others_quantized():
    model, x = network().eval(), images()
    points, ranges = observed(model, x)
    first = [point for point in points if point.path.startswith("layer1")]
    with quantized(model, points, ranges, Bits(4, 4)), quantized(model, first, ranges, Bits(8, 8)):
        nested = model(x)
    with quantized(model, points, ranges, Bits(4, 4), {"layer1.*": Bits(8, 8)}):
        assert torch.equal(model(x), nested)


def test_other_peoples_hooks_are_left_alone():
    model, x = network().eval(), images()
    points, ranges = observed(model, x)
    seen = []
    model.layer1[0].register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    with quantized(model, points, ranges, Bits(4, 4)):
        model(x)
    model(x)
    assert len(seen) == 2


# ---- modes it must work under ------------------------------------------------------------------------------------


def test_no_grad_gives_the_same_outputs_either_way_round():
    model, x = network().eval(), images()
    points, ranges = observed(model, x)
    with quantized(model, points, ranges, Bits(4, 4)):
        with_grad = model(x)
        with torch.no_grad():
            inside = model(x)
    with torch.no_grad(), quantized(model, points, ranges, Bits(4, 4)):
        outside = model(x)
    with torch.inference_mode(), quantized(model, points, ranges, Bits(4, 4)):
        inference = model(x)
    assert with_grad.requires_grad
    assert not inside.requires_grad
    assert all(torch.equal(with_grad, other) for other in (inside, outside, inference))


def test_autocast_never_serves_a_float_weight_for_a_quantized_one():
    model, x = network().eval(), images()
    points, ranges = observed(model, x)

    def run(bits):
        with quantized(model, points, ranges, bits) if bits else nullcontext():
            return model(x)

    with torch.autocast("cpu", torch.bfloat16):
        alone = {bits: run(bits) for bits in (None, Bits(4, 4), Bits(8, 8))}
    with torch.autocast("cpu", torch.bfloat16):  # one block for all: autocast caches the weights it casts
        for bits in (None, Bits(4, 4), None, Bits(8, 8), Bits(4, 4)):
            assert torch.equal(run(bits), alone[bits])
    with torch.autocast("cpu", torch.bfloat16), quantized(model, points, ranges, Bits(4, 4)):
        model(x).float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_channels_last_gives_the_same_ranges_and_close_outputs():
    model, x = network(dtype=torch.float64).eval(), images(dtype=torch.float64)
    points, ranges = observed(model, x)
    with quantized(model, points, ranges, Bits(4, 4)):
        expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    with quantized(model, points, ranges, Bits(4, 4)):
        got = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_inside_one_ddp_forward_two_processes_equal_one(tmp_path):
    x = images(4, 16, torch.float64)
    launch(ddp_step.run, x, tmp_path, processes=2)
    step = ddp_step.Step()
    outputs = step(x)
    ddp_step.loss(*outputs).backward()
    calibrated = calibrate(step.net, x.split(1), step.points)
    for rank in range(2):
        assert Ranges.load(tmp_path / f"{rank}.json", step.net, step.points) == calibrated
        theirs, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for their, ours in zip(theirs, outputs, strict=True):
            torch.testing.assert_close(their, ours[rank::2].detach(), rtol=1e-9, atol=1e-9)
        for name, parameter in step.named_parameters():
            assert (gradients[name] - parameter.grad).abs().max() <= 1e-9 * parameter.grad.abs().max(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_ranges_and_outputs():
    model, x = network(dtype=torch.float64).eval(), images(dtype=torch.float64)
    points, ranges = observed(model, x)
    with quantized(model, points, ranges, Bits(4, 4)):
        expected = model(x)
    model = model.cuda()
    with quantized(model, points, ranges, Bits(4, 4)):  # ranges of the CPU
        torch.testing.assert_close(model(x.cuda()).cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [D2ResNet, CifarResNet, PlainNet])
def test_other_layouts_are_quantized_at_every_point(make):
    torch.manual_seed(0)
    model, x = make().eval(), images()
    points, ranges = observed(model, x)
    weights = {point.path: 2 for point in points if point.is_weight}
    seen = {}
    for path in weights:
        layer = model.get_submodule(path)
        layer.register_forward_hook(lambda module, args, out, path=path: seen.update({path: module.weight.detach()}))
    with quantized(model, points, ranges, Bits(2, 2), {"*": Bits(2, 2)}):
        model(x)
    assert seen.keys() == weights.keys()
    for path, weight in seen.items():
        axis = 1 if isinstance(model.get_submodule(path), nn.ConvTranspose2d) else 0
        levels = [channel.unique().numel() for channel in weight.unbind(axis)]
        assert max(levels) <= 4
        assert not torch.equal(weight, model.get_submodule(path).weight)


def test_the_stem_that_pools_inside_is_quantized_from_zero():
    model = D2ResNet().eval()
    points, ranges = observed(model, images())
    stem = next(point for point in points if point.from_zero)
    low, _ = ranges[stem].range(8)
    grid = ranges.qparams(stem, 8)
    assert grid.zero_point == 0 or low < 0
    shifted = QuantPoint(stem.path, stem.side, from_zero=True)
    ranges[stem]._low += 0.5  # as where every pooled value is above zero
    assert ranges.qparams(shifted, 8).zero_point == 0
    assert ranges.qparams(shifted, 8).scale == ranges[stem].range(8)[1] / 255


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_is_not_finite_or_too_wide_names_the_path_it_first_reached(value):
    model = network().eval()
    with torch.no_grad():
        model.layer2[0].bn1.bias[0] = value
        model.layer2[0].bn1.bias[1] = -value
        model.layer2[0].relu = nn.Identity()
    match = r"NaN or infinite values reached layer2\.0\.conv2:input"
    with pytest.raises(UserError, match=match), observing(model, quant_points(model)):
        model(images())


def test_points_may_come_from_a_generator():
    model, x = network().eval(), images()
    points, ranges = observed(model, x)
    with quantized(model, points, ranges, Bits(4, 4)):
        expected = model(x)
    with quantized(model, (point for point in points), ranges, Bits(4, 4)):
        assert torch.equal(model(x), expected)
    with observing(model, (point for point in points)) as again:
        model(x)
    assert again == ranges


def test_a_compiled_model_is_refused():
    compiled = torch.compile(nn.Linear(2, 2), backend="eager")
    with pytest.raises(UserError, match="a compiled graph does not see"), observing(compiled, ()):
        pass


def test_a_weight_that_is_computed_is_named():
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    with (
        pytest.raises(UserError, match="1 has no plain weight parameter"),
        quantized(model, quant_points(model), None, Bits(4, None)),
    ):
        pass


def test_activation_bits_need_ranges():
    model = network()
    with (
        pytest.raises(UserError, match="no entry for relu:output"),
        quantized(model, quant_points(model), None, Bits(4, 4)),
    ):
        pass


def test_a_point_that_calibration_never_reached_is_named_when_it_is_reached():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.late = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, rows):
            return self.late(self.first(x)[:rows])

    model, x = Late(), torch.randn(3, 4)
    points = quant_points(model)
    with observing(model, points) as ranges:
        model(x, 0)
    with quantized(model, points, ranges, Bits(4, 4)):
        assert model(x, 0).shape == (0, 2)
        with pytest.raises(UserError, match="nothing was observed at late:input"):
            model(x, 2)


def test_a_point_on_something_else_than_a_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = nn.Sequential(Pair())
    with pytest.raises(UserError, match="the output of 0 is a tuple"), observing(model, [QuantPoint("0", Side.OUTPUT)]):
        model(torch.zeros(1))
