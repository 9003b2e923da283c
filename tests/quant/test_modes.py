"""Modes on whole networks: against a forward written out by hand, and what a block leaves behind."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support import ddp_step
from support.networks import CifarResNet, D2ResNet, PlainNet
from support.reference_quantizer import RangeRecorder, quantize_activation, quantize_weight
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from ssql_det.core.distributed import launch
from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme, Side, quant_points

WIDTHS = ["2w4a", "4w4a", "5w8a", "8w8a"]


def network(name="resnet18", dtype=torch.float32):
    torch.manual_seed(0)
    return torchvision.models.get_model(name).to(dtype).train()


def images(count=2, size=32, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def observed(model, x):
    quantization = Quantization(model)
    with quantization.observing(), torch.no_grad():
        model(x)
    return quantization


def ends(quantization):
    """What was observed, by point."""
    observers = {point.key: quantization[point].observer for point in quantization.points}
    return {key: [float(end) for end in each.range] for key, each in observers.items() if each is not None}


# ---- a ResNet-18 forward written out: no hooks, no module of ours ------------------------------------------------


class ByHand:
    """Two passes over the same images: ``bits=None`` keeps every activation's range, then bits quantize by them."""

    def __init__(self, model):
        self.model, self.record = model, RangeRecorder()

    def act(self, name, x, bits):
        if bits is None:
            return self.record(name, x)
        return quantize_activation(x, *self.record.ranges[name], bits)

    def conv(self, layer, x, bits):
        weight = layer.weight if bits is None else quantize_weight(layer.weight, bits)
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
    q = observed(model, x)
    with q.at(bits):
        ours = model(x)
    by_hand = ByHand(model)
    by_hand(x)
    assert torch.equal(ours, by_hand(x, bits.weight, bits.act))


@pytest.mark.parametrize("text", ["2w4a", "5w8a"])
def test_resnet18_gradients_equal_those_of_the_forward_written_out(text):
    bits, x = Bits.parse(text), images(dtype=torch.float64)
    model = network(dtype=torch.float64)
    q = observed(model, x)
    with q.at(bits):
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
        q = observed(model, x)
        model.load_state_dict(frozen.state_dict())
        float_before = copy.deepcopy(model)(x)
        with q.at(Bits.parse(text)):
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
    q = observed(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with q.at(Bits(4, 4)):
        loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))


def test_an_exception_inside_restores_everything():
    model, x = network(), images()
    q = observed(model, x)
    before = fingerprint(model)
    for block in (q.observing(), q.at(Bits(4, 4))):
        with pytest.raises(ZeroDivisionError), block:
            raise ZeroDivisionError
        assert fingerprint(model) == before
    assert ends(q) == ends(observed(network(), x))  # what was observed before a block failed stays
    unknown = [*q.points, QuantPoint("layer9", Side.OUTPUT)]
    with pytest.raises(UserError, match="no module layer9: the points are of another model; did you mean 'layer"):
        Quantization(model, unknown)
    assert fingerprint(model) == before


def test_the_innermost_block_decides_and_the_outer_one_comes_back():
    model, x = network().eval(), images()
    q = observed(model, x)
    plain = model(x)
    with q.at(Bits(4, 4)):
        four = model(x)
        with q.at(Bits(8, 8)):
            eight = model(x)
            with q.at(Bits.FP):
                assert torch.equal(model(x), plain)
            assert torch.equal(model(x), eight)
        assert torch.equal(model(x), four)
        seen = ends(q)
        with q.observing():
            assert torch.equal(model(x), plain)
        assert ends(q) == seen
        assert torch.equal(model(x), four)
        with pytest.raises(ZeroDivisionError), q.at(Bits(2, 2)):
            raise ZeroDivisionError
        assert torch.equal(model(x), four)
    with q.at(Bits(8, 8)):
        assert torch.equal(model(x), eight)  # eight bits are those of the float weights, not of the four-bit ones
    assert torch.equal(model(x), plain)


def test_an_inner_block_over_some_points_leaves_the_others_quantized():
    model, x = network().eval(), images()
    q = observed(model, x)
    inner = Quantization(model, (point for point in q.points if point.path.startswith("layer1")))
    with inner.observing(), torch.no_grad():
        model(x)
    with q.at(Bits(4, 4)), inner.at(Bits(8, 8)):
        nested = model(x)
    with q.at(Bits(4, 4), {"layer1.*": Bits(8, 8)}):
        assert torch.equal(model(x), nested)


def test_other_peoples_hooks_are_left_alone():
    model, x = network().eval(), images()
    q = observed(model, x)
    seen = []
    model.layer1[0].register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    with q.at(Bits(4, 4)):
        model(x)
    model(x)
    assert len(seen) == 2


# ---- modes it must work under ------------------------------------------------------------------------------------


def test_no_grad_gives_the_same_outputs_either_way_round():
    model, x = network().eval(), images()
    q = observed(model, x)
    with q.at(Bits(4, 4)):
        with_grad = model(x)
        with torch.no_grad():
            inside = model(x)
    with torch.no_grad(), q.at(Bits(4, 4)):
        outside = model(x)
    with torch.inference_mode(), q.at(Bits(4, 4)):
        inference = model(x)
    assert with_grad.requires_grad
    assert not inside.requires_grad
    assert all(torch.equal(with_grad, other) for other in (inside, outside, inference))


def test_autocast_never_serves_a_float_weight_for_a_quantized_one():
    model, x = network().eval(), images()
    q = observed(model, x)

    def run(bits):
        with q.at(bits) if bits else nullcontext():
            return model(x)

    with torch.autocast("cpu", torch.bfloat16):
        alone = {bits: run(bits) for bits in (None, Bits(4, 4), Bits(8, 8))}
    with torch.autocast("cpu", torch.bfloat16):  # one block for all: autocast caches the weights it casts
        for bits in (None, Bits(4, 4), None, Bits(8, 8), Bits(4, 4)):
            assert torch.equal(run(bits), alone[bits])
    with torch.autocast("cpu", torch.bfloat16), q.at(Bits(4, 4)):
        model(x).float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_channels_last_gives_the_same_ranges_and_close_outputs():
    model, x = network(dtype=torch.float64).eval(), images(dtype=torch.float64)
    q = observed(model, x)
    with q.at(Bits(4, 4)):
        expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    with q.at(Bits(4, 4)):
        got = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scheme", ["minmax", "weight=centred, act=mse", "act=percentile:99"])
def test_inside_one_ddp_forward_two_processes_equal_one(scheme, tmp_path):
    x = images(4, 16, torch.float64)
    launch(ddp_step.run, x, tmp_path, scheme, processes=2)
    step = ddp_step.Step(scheme)
    outputs = step(x)
    ddp_step.loss(*outputs).backward()
    calibrated = Quantization(step.net, scheme=step.quantization.scheme)
    calibrated.calibrate(x.split(1))
    for rank in range(2):
        theirs = Quantization.load(tmp_path / f"{rank}.safetensors", step.net)
        assert ends(theirs) == ends(calibrated)
        for point in calibrated.points:
            ours = calibrated[point].observer
            assert ours is None or ours.sums is None or torch.equal(ours.sums, theirs[point].observer.sums)
        theirs, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for their, ours in zip(theirs, outputs, strict=True):
            torch.testing.assert_close(their, ours[rank::2].detach(), rtol=1e-9, atol=1e-9)
        for name, parameter in step.named_parameters():
            assert (gradients[name] - parameter.grad).abs().max() <= 1e-9 * parameter.grad.abs().max(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_ranges_and_outputs():
    model, x = network(dtype=torch.float64).eval(), images(dtype=torch.float64)
    q = observed(model, x)
    with q.at(Bits(4, 4)):
        expected = model(x)
    model.cuda()
    with q.at(Bits(4, 4)):  # observed on the CPU
        torch.testing.assert_close(model(x.cuda()).cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [D2ResNet, CifarResNet, PlainNet])
def test_other_layouts_are_quantized_at_every_point(make):
    torch.manual_seed(0)
    model, x = make().eval(), images()
    q = observed(model, x)
    weights = {point.path: 2 for point in q.points if point.is_weight}
    seen = {}
    for path in weights:
        layer = model.get_submodule(path)
        layer.register_forward_hook(lambda module, args, out, path=path: seen.update({path: module.weight.detach()}))
    with q.at(Bits(2, 2), {"*": Bits(2, 2)}):
        model(x)
    assert seen.keys() == weights.keys()
    for path, weight in seen.items():
        axis = 1 if isinstance(model.get_submodule(path), nn.ConvTranspose2d) else 0
        levels = [channel.unique().numel() for channel in weight.unbind(axis)]
        assert max(levels) <= 4
        assert not torch.equal(weight, model.get_submodule(path).weight)


def test_the_stem_that_pools_inside_is_quantized_from_zero():
    model = D2ResNet().eval()
    q = observed(model, images())
    stem = q[next(point for point in q.points if point.include_zero)]
    low, high = stem.observer.range
    assert stem.get_qparams(8).zero_point == 0 or low < 0
    stem.observer.set_range(low + 0.5, high)  # as where every pooled value is above zero
    assert stem.get_qparams(8).zero_point == 0
    assert stem.get_qparams(8).scale == high / 255


# ---- backward passes inside, and passes that are run again -----------------------------------------------------------


def gradients_of(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def assert_close(gradients, expected):
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() <= 1e-9 * expected[name].abs().max(), name


@pytest.mark.parametrize("scheme", ["minmax", "weight=centred, act=mse"])
def test_backward_between_two_passes_is_backward_after_both(scheme):
    model, x = network(dtype=torch.float64).eval(), images(4, dtype=torch.float64).split(2)
    q = Quantization(model, scheme=Scheme.parse(scheme))
    q.calibrate(x)
    with q.at(Bits(3, 4)):
        (model(x[0]).square().sum() + model(x[1]).square().sum()).backward()
        together = gradients_of(model)
        for view in x:
            model(view).square().sum().backward()
    assert_close(gradients_of(model), together)


def test_a_weight_that_changed_inside_is_quantized_anew():
    model, x = network().eval(), images()
    q = observed(model, x)
    with q.at(Bits(4, 4)), torch.no_grad():
        before = model(x)
        dict(model.named_parameters())["layer1.0.conv1.weight"].mul_(-1)
        after = model(x)
    assert not torch.equal(before, after)
    with q.at(Bits(4, 4)), torch.no_grad():
        assert torch.equal(model(x), after)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_neither_gradients_nor_what_is_observed(use_reentrant):
    model, x = network(dtype=torch.float64).eval(), images(4, dtype=torch.float64).split(2)
    plain, again = (Quantization(model, scheme=Scheme.parse("act=mse")) for _ in range(2))  # its counts would double

    def step(quantization):
        with quantization.observing():
            model(x[0]).square().sum().backward()
        model.zero_grad()
        with quantization.at(Bits(3, 4)):
            (model(x[0]).square().sum() + model(x[1]).square().sum()).backward()
        return gradients_of(model)

    expected = step(plain)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.forward = partial(checkpoint, block.forward, use_reentrant=use_reentrant)
    assert_close(step(again), expected)
    observers = ((plain[point].observer, again[point].observer) for point in plain.points if not point.is_weight)
    assert all(one.range == two.range and torch.equal(one.sums, two.sums) for one, two in observers)


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_is_not_finite_or_too_wide_names_the_path_it_first_reached(value):
    model = network().eval()
    with torch.no_grad():
        model.layer2[0].bn1.bias[0] = value
        model.layer2[0].bn1.bias[1] = -value
        model.layer2[0].relu = nn.Identity()
    match = r"NaN or infinite values at layer2\.0\.conv2:input"
    with pytest.raises(UserError, match=match), Quantization(model).observing():
        model(images())


def test_points_may_come_from_a_generator():
    model, x = network().eval(), images()
    q = observed(model, x)
    with q.at(Bits(4, 4)):
        expected = model(x)
    again = Quantization(model, (point for point in q.points))
    with again.observing():
        model(x)
    assert ends(again) == ends(q)
    with again.at(Bits(4, 4)):
        assert torch.equal(model(x), expected)


def test_a_compiled_model_is_refused():
    compiled = torch.compile(nn.Linear(2, 2), backend="eager")
    with pytest.raises(UserError, match="quantization does not work on a compiled model"):
        Quantization(compiled, ())


def test_a_weight_that_is_computed_is_named():
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    with pytest.raises(UserError, match=r"1\.weight is not a parameter"):
        Quantization(model)


def test_activation_bits_need_a_calibration():
    quantization = Quantization(network())
    with quantization.at(Bits(4, None)):
        pass
    with (
        pytest.raises(UserError, match="nothing was observed at relu:output or elsewhere"),
        quantization.at(Bits(4, 4)),
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
    q = Quantization(model, [*quant_points(model), QuantPoint("first", Side.OUTPUT)])
    with q.observing():
        model(x, 0)
    with q.at(Bits(4, 4)):
        assert model(x, 0).shape == (0, 2)
        with pytest.raises(UserError, match="nothing was observed at late:input"):
            model(x, 2)


def test_a_point_on_something_else_than_a_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = nn.Sequential(Pair())
    quantization = Quantization(model, [QuantPoint("0", Side.OUTPUT)])
    with pytest.raises(UserError, match="the output of 0 is a tuple"), quantization.observing():
        model(torch.zeros(1))
