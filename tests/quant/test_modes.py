"""Contexts of ``Quantization`` on whole networks: compared with a reference forward, and restored state."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import ddp_step
from support.networks import CifarResNet, D2ResNet, PlainNet
from support.reference_quantizer import RangeRecorder, quantize_activation, quantize_weight
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ssql_det.core.errors import UserError
from ssql_det.core.launch import launch
from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme, Side, quant_points

WIDTHS = ["2w4a", "4w4a", "5w8a", "8w8a"]


class NarrowResNet(ResNet):
    """A ResNet-18, or one of bottlenecks, with 64 channels in the stem and an eighth of the others: much faster."""

    def __init__(self, block=BasicBlock):
        super().__init__(block, [2, 2, 2, 2])
        self.fc = nn.Linear(64 * block.expansion, 10)

    def _make_layer(self, block, planes, *args, **options):
        return super()._make_layer(block, planes // 8, *args, **options)


def build_network(block=BasicBlock, dtype=torch.float32):
    torch.manual_seed(0)
    return NarrowResNet(block).to(dtype).train()


def make_images(count=2, size=32, dtype=torch.float32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def observe(model, x):
    quantization = Quantization(model)
    with quantization.observing(), torch.no_grad():
        model(x)
    return quantization


def get_ranges(quantization):
    """The observed range of each point."""
    observers = {point.key: quantization[point].observer for point in quantization.points}
    return {key: [float(bound) for bound in each.range] for key, each in observers.items() if each is not None}


# ---- a reference forward of ResNet-18, without hooks and modules of the package ----------------------------------


class ReferenceResNet18:
    """Called twice with the same images: first without bits, to record ranges, then with bits, to quantize."""

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
        for stage_index, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
            for index, block in enumerate(stage):
                out = F.relu(self.norm(block.bn1, self.conv(block.conv1, x, weight_bits)))
                out = self.act(f"{stage_index}.{index}.mid", out, act_bits)
                out = self.norm(block.bn2, self.conv(block.conv2, out, weight_bits))
                if block.downsample is not None:
                    x = self.norm(block.downsample[1], self.conv(block.downsample[0], x, weight_bits))
                x = self.act(f"{stage_index}.{index}.out", F.relu(out + x), act_bits)
        return net.fc(x.mean((2, 3)))


@pytest.mark.parametrize("text", WIDTHS)
def test_resnet18_in_training_equals_the_reference(text):
    bits, x = Bits.parse(text), make_images()
    model = build_network()
    q = observe(model, x)
    with q.at(bits):
        ours = model(x)
    reference = ReferenceResNet18(model)
    reference(x)
    assert torch.equal(ours, reference(x, bits.weight, bits.act))


@pytest.mark.parametrize("text", ["2w4a", "5w8a"])
def test_resnet18_gradients_equal_those_of_the_reference(text):
    bits, x = Bits.parse(text), make_images(dtype=torch.float64)
    model = build_network(dtype=torch.float64)
    q = observe(model, x)
    with q.at(bits):
        model(x).square().sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    reference = ReferenceResNet18(model)
    reference(x)
    reference(x, bits.weight, bits.act).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (ours[name] - parameter.grad).abs().max() <= 1e-9 * parameter.grad.abs().max(), name


# ---- restored state ----------------------------------------------------------------------------------------------


def get_state(model):
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    overridden = [name for name, module in model.named_modules() if "weight" in module.__dict__]
    return list(model.state_dict()), [id(parameter) for parameter in model.parameters()], hooks, overridden


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.slow
def test_contexts_restore_the_model_at_any_width(block):
    model, x = build_network(block), make_images()
    frozen = copy.deepcopy(model)
    before = get_state(model)
    for text in WIDTHS:
        q = observe(model, x)
        model.load_state_dict(frozen.state_dict())
        float_before = copy.deepcopy(model)(x)
        with q.at(Bits.parse(text)):
            inside = model(x)
            assert list(model.state_dict()) == before[0]
            assert [id(parameter) for parameter in model.parameters()] == before[1]
            saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert get_state(model) == before
        assert not torch.equal(inside, float_before)
        weights = dict(frozen.named_parameters())
        assert all(torch.equal(saved[name], weights[name]) for name in weights)  # float, also inside the context
        assert torch.equal(model(x), float_before)


def test_deepcopy_works_after_a_step():
    model, x = build_network(), make_images()
    q = observe(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with q.at(Bits(4, 4)):
        loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))


def test_contexts_restore_the_model_after_an_error():
    model, x = build_network(), make_images()
    q = observe(model, x)
    before = get_state(model)
    for context in (q.observing(), q.at(Bits(4, 4))):
        with pytest.raises(ZeroDivisionError), context:
            raise ZeroDivisionError
        assert get_state(model) == before
    assert get_ranges(q) == get_ranges(observe(build_network(), x))  # the former observations are kept
    unknown = [*q.points, QuantPoint("layer9", Side.OUTPUT)]
    with pytest.raises(UserError, match="no module layer9: the points are of another model; did you mean 'layer"):
        Quantization(model, unknown)
    assert get_state(model) == before


def test_the_innermost_context_is_active_and_the_outer_one_is_restored():
    model, x = build_network().eval(), make_images()
    q = observe(model, x)
    expected = model(x)
    with q.at(Bits(4, 4)):
        four = model(x)
        with q.at(Bits(8, 8)):
            eight = model(x)
            with q.at(Bits.FP):
                assert torch.equal(model(x), expected)
            assert torch.equal(model(x), eight)
        assert torch.equal(model(x), four)
        ranges = get_ranges(q)
        with q.observing():
            assert torch.equal(model(x), expected)
        assert get_ranges(q) == ranges
        assert torch.equal(model(x), four)
        with pytest.raises(ZeroDivisionError), q.at(Bits(2, 2)):
            raise ZeroDivisionError
        assert torch.equal(model(x), four)
    with q.at(Bits(8, 8)):
        assert torch.equal(model(x), eight)  # of the float weights, not of the four-bit ones
    assert torch.equal(model(x), expected)


def test_an_inner_context_of_some_points_keeps_the_others_quantized():
    model, x = build_network().eval(), make_images()
    q = observe(model, x)
    inner = Quantization(model, (point for point in q.points if point.path.startswith("layer1")))
    with inner.observing(), torch.no_grad():
        model(x)
    with q.at(Bits(4, 4)), inner.at(Bits(8, 8)):
        nested = model(x)
    with q.at(Bits(4, 4), {"layer1.*": Bits(8, 8)}):
        assert torch.equal(model(x), nested)


def test_hooks_of_users_are_kept():
    model, x = build_network().eval(), make_images()
    q = observe(model, x)
    outputs = []
    model.layer1[0].register_forward_hook(lambda module, args, output: outputs.append(output.detach().clone()))
    with q.at(Bits(4, 4)):
        model(x)
    model(x)
    assert len(outputs) == 2


# ---- together with other modes of torch --------------------------------------------------------------------------


def test_no_grad_gives_the_same_outputs_inside_and_outside():
    model, x = build_network().eval(), make_images()
    q = observe(model, x)
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


def test_autocast_does_not_reuse_a_float_weight_as_a_quantized_one():
    model, x = build_network().eval(), make_images()
    q = observe(model, x)

    def run(bits):
        with q.at(bits) if bits else nullcontext():
            return model(x)

    with torch.autocast("cpu", torch.bfloat16):
        separate = {bits: run(bits) for bits in (None, Bits(4, 4), Bits(8, 8))}
    with torch.autocast(
        "cpu", torch.bfloat16
    ):  # autocast caches the weights that it casts, until the end of its context
        for bits in (None, Bits(4, 4), None, Bits(8, 8), Bits(4, 4)):
            assert torch.equal(run(bits), separate[bits])
    with torch.autocast("cpu", torch.bfloat16), q.at(Bits(4, 4)):
        model(x).float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_channels_last_gives_the_same_ranges_and_close_outputs():
    model, x = build_network(dtype=torch.float64).eval(), make_images(dtype=torch.float64)
    q = observe(model, x)
    with q.at(Bits(4, 4)):
        expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    with q.at(Bits(4, 4)):
        output = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scheme", ["minmax", "weight=centred, act=mse", "act=percentile:99"])
@pytest.mark.slow
def test_two_processes_with_ddp_equal_one(scheme, tmp_path):
    x = make_images(4, 16, torch.float64)
    launch(ddp_step.run, x, tmp_path, scheme, processes=2)
    step = ddp_step.Step(scheme)
    outputs = step(x)
    ddp_step.loss(*outputs).backward()
    calibrated = Quantization(step.net, scheme=step.quantization.scheme)
    calibrated.calibrate(x.split(1))
    for rank in range(2):
        loaded = Quantization.load(tmp_path / f"{rank}.safetensors", step.net)
        assert get_ranges(loaded) == get_ranges(calibrated)
        for point in calibrated.points:
            observer = calibrated[point].observer
            sums = None if observer is None else observer.sums
            assert sums is None or torch.equal(sums, loaded[point].observer.sums)
        rank_outputs, gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for rank_output, output in zip(rank_outputs, outputs, strict=True):
            torch.testing.assert_close(rank_output, output[rank::2].detach(), rtol=1e-9, atol=1e-9)
        for name, parameter in step.named_parameters():
            assert (gradients[name] - parameter.grad).abs().max() <= 1e-9 * parameter.grad.abs().max(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_ranges_and_outputs():
    model, x = build_network(dtype=torch.float64).eval(), make_images(dtype=torch.float64)
    q = observe(model, x)
    with q.at(Bits(4, 4)):
        expected = model(x)
    model.cuda()
    with q.at(Bits(4, 4)):  # observed on the CPU
        torch.testing.assert_close(model(x.cuda()).cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [D2ResNet, CifarResNet, PlainNet])
def test_other_networks_are_quantized_at_every_point(make):
    torch.manual_seed(0)
    model, x = make().eval(), make_images()
    q = observe(model, x)
    weights = {point.path: 2 for point in q.points if point.is_weight}
    quantized = {}
    for path in weights:
        layer = model.get_submodule(path)
        layer.register_forward_hook(
            lambda module, args, out, path=path: quantized.update({path: module.weight.detach()})
        )
    with q.at(Bits(2, 2), {"*": Bits(2, 2)}):
        model(x)
    assert quantized.keys() == weights.keys()
    for path, weight in quantized.items():
        axis = 1 if isinstance(model.get_submodule(path), nn.ConvTranspose2d) else 0
        levels = [channel.unique().numel() for channel in weight.unbind(axis)]
        assert max(levels) <= 4
        assert not torch.equal(weight, model.get_submodule(path).weight)


def test_the_range_of_a_stem_that_ends_in_a_pool_is_extended_to_zero():
    model = D2ResNet().eval()
    q = observe(model, make_images())
    stem = q[next(point for point in q.points if point.include_zero)]
    low, high = stem.observer.range
    assert stem.get_qparams(8).zero_point == 0 or low < 0
    stem.observer.set_range(low + 0.5, high)  # as if all pooled values were above zero
    assert stem.get_qparams(8).zero_point == 0
    assert stem.get_qparams(8).scale == high / 255


# ---- backward passes inside a context, and activation checkpointing --------------------------------------------------


def pop_gradients(model):
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return gradients


def assert_close(gradients, expected):
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() <= 1e-9 * expected[name].abs().max(), name


@pytest.mark.parametrize("scheme", ["minmax", "weight=centred, act=mse"])
@pytest.mark.slow
def test_backward_between_two_passes_equals_backward_after_both(scheme):
    model, x = build_network(dtype=torch.float64).eval(), make_images(4, dtype=torch.float64).split(2)
    q = Quantization(model, scheme=Scheme.parse(scheme))
    q.calibrate(x)
    with q.at(Bits(3, 4)):
        (model(x[0]).square().sum() + model(x[1]).square().sum()).backward()
        expected = pop_gradients(model)
        for view in x:
            model(view).square().sum().backward()
    assert_close(pop_gradients(model), expected)


def test_a_weight_that_changes_inside_a_context_is_quantized_again():
    model, x = build_network().eval(), make_images()
    q = observe(model, x)
    with q.at(Bits(4, 4)), torch.no_grad():
        before = model(x)
        dict(model.named_parameters())["layer1.0.conv1.weight"].mul_(-1)
        after = model(x)
    assert not torch.equal(before, after)
    with q.at(Bits(4, 4)), torch.no_grad():
        assert torch.equal(model(x), after)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_neither_gradients_nor_observations(use_reentrant):
    model, x = build_network(dtype=torch.float64).eval(), make_images(4, dtype=torch.float64).split(2)
    # Histograms, whose counts would double if a pass were observed twice.
    plain, checkpointed = (Quantization(model, scheme=Scheme.parse("act=mse")) for _ in range(2))

    def step(quantization):
        with quantization.observing():
            model(x[0]).square().sum().backward()
        model.zero_grad()
        with quantization.at(Bits(3, 4)):
            (model(x[0]).square().sum() + model(x[1]).square().sum()).backward()
        return pop_gradients(model)

    expected = step(plain)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.forward = partial(checkpoint, block.forward, use_reentrant=use_reentrant)
    assert_close(step(checkpointed), expected)
    observers = ((plain[point].observer, checkpointed[point].observer) for point in plain.points if not point.is_weight)
    assert all(one.range == two.range and torch.equal(one.sums, two.sums) for one, two in observers)


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_values_that_are_not_finite_are_an_error_that_names_the_first_point(value):
    model = build_network().eval()
    with torch.no_grad():
        model.layer2[0].bn1.bias[0] = value
        model.layer2[0].bn1.bias[1] = -value
        model.layer2[0].relu = nn.Identity()
    match = r"NaN or infinite values at layer2\.0\.conv2:input"
    with pytest.raises(UserError, match=match), Quantization(model).observing():
        model(make_images())


def test_points_may_be_a_generator():
    model, x = build_network().eval(), make_images()
    q = observe(model, x)
    with q.at(Bits(4, 4)):
        expected = model(x)
    again = Quantization(model, (point for point in q.points))
    with again.observing():
        model(x)
    assert get_ranges(again) == get_ranges(q)
    with again.at(Bits(4, 4)):
        assert torch.equal(model(x), expected)


def test_a_compiled_model_is_an_error():
    compiled = torch.compile(nn.Linear(2, 2), backend="eager")
    with pytest.raises(UserError, match="quantization does not work on a compiled model"):
        Quantization(compiled, ())


def test_a_parametrized_weight_is_an_error():
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    with pytest.raises(UserError, match=r"1\.weight is not a parameter"):
        Quantization(model)


def test_activation_bits_need_calibration():
    quantization = Quantization(build_network())
    with quantization.at(Bits(4, None)):
        pass
    with (
        pytest.raises(UserError, match="no activations are calibrated, such as relu:output"),
        quantization.at(Bits(4, 4)),
    ):
        pass


def test_a_point_that_was_not_observed_is_an_error_when_it_is_reached():
    class OptionalLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.late = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, rows):
            return self.late(self.first(x)[:rows])

    model, x = OptionalLayer(), torch.randn(3, 4)
    q = Quantization(model, [*quant_points(model), QuantPoint("first", Side.OUTPUT)])
    with q.observing():
        model(x, 0)
    with q.at(Bits(4, 4)):
        assert model(x, 0).shape == (0, 2)
        with pytest.raises(UserError, match="nothing was observed at late:input"):
            model(x, 2)


def test_a_point_at_a_tuple_is_an_error():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = nn.Sequential(Pair())
    quantization = Quantization(model, [QuantPoint("0", Side.OUTPUT)])
    with pytest.raises(UserError, match="the output of 0 is a tuple"), quantization.observing():
        model(torch.zeros(1))
