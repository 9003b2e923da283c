"""Switchable norms, against networks whose norms are modules of their own."""

import copy

import pytest
import torch
from support import switchable_step
from support.networks import D2ResNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.launch import launch
from ssql_det.minid2.layers import FrozenBatchNorm2d
from ssql_det.minid2.layers.batch_norm import NaiveSyncBatchNorm
from ssql_det.ptq import check_role_images
from ssql_det.quant import Bits, Calibration, Quantization, Scheme
from ssql_det.quant.switchable_norms import SwitchableNorms

SWITCHABLE = Scheme(norms="switchable")
STATISTICS = ("running_mean", "running_var")


def draw_images(seed=1, count=4):
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build_model():
    torch.manual_seed(0)
    model = D2ResNet().double()
    for norm in find_norms(model).values():
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model(draw_images(0))
    return model


def find_norms(model):
    return {name: module for name, module in model.named_modules() if name.endswith("norm")}


def calibrate(model, scheme=SWITCHABLE):
    quantization = Quantization(model, scheme=scheme)
    quantization.calibrate([draw_images()])
    return quantization


@pytest.fixture
def trained():
    """A model, its quantization, and norms of 2 and 4 bits that differ from the float ones."""
    model = build_model().eval()
    quantization = calibrate(model)
    norms = quantization.add_switchable_norms([4, 2])
    for bits in norms.weight_bits:
        for tensor in norms.get_tensors(bits).values():
            tensor.data.mul_(1 + bits / 10)
    return model, quantization, norms


def test_each_width_trains_as_a_network_with_norms_of_its_own():
    """Three steps of SGD with momentum and decay, against a copy of the network for each width; convs are shared."""
    model = build_model()
    copies = {bits: copy.deepcopy(model) for bits in (2, 4)}
    references = {bits: calibrate(each, Scheme()) for bits, each in copies.items()}
    quantization, initial = calibrate(model), copy.deepcopy(model.state_dict())
    norms = quantization.add_switchable_norms([2, 4])
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    convs = {name: each for name, each in model.named_parameters() if "norm" not in name}
    optimizer = torch.optim.SGD([*convs.values(), *norms.parameters()], **settings)
    own = [each for network in copies.values() for norm in find_norms(network).values() for each in norm.parameters()]
    reference_convs = {name: each for name, each in copies[2].named_parameters() if "norm" not in name}
    for name, parameter in reference_convs.items():
        path, _, attribute = name.rpartition(".")
        setattr(copies[4].get_submodule(path), attribute, parameter)
    reference_optimizer = torch.optim.SGD([*reference_convs.values(), *own], **settings)

    for step, bits in enumerate((2, 4, 2)):
        images = draw_images(10 + step)
        model.train()
        optimizer.zero_grad()
        with quantization.at(Bits(bits, 4)):
            model(images).square().mean().backward()
        copies[bits].train()
        reference_optimizer.zero_grad()
        with references[bits].at(Bits(bits, 4)):
            copies[bits](images).square().mean().backward()
        gradients = {width: [each.grad for each in norms.sets[str(width)].parameters()] for width in (2, 4)}
        assert all(gradient is None for gradient in gradients[6 - bits])
        assert not any(gradient is None for gradient in gradients[bits])
        optimizer.step()
        reference_optimizer.step()
        for width, network in copies.items():
            expected = network.state_dict()
            for name, tensor in norms.get_tensors(width).items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)
        for name, parameter in convs.items():
            torch.testing.assert_close(parameter, reference_convs[name], rtol=1e-12, atol=1e-12)
    assert all(parameter.grad is None for norm in find_norms(model).values() for parameter in norm.parameters())
    unchanged = [name for name in initial if "norm" in name and not name.endswith("num_batches_tracked")]
    assert all(torch.equal(initial[name], model.state_dict()[name]) for name in unchanged)


def test_sets_start_as_copies_and_only_their_width_uses_them(trained):
    model, quantization, norms = trained
    fresh = SwitchableNorms(model, [3])
    for name, tensor in fresh.get_tensors(3).items():
        assert torch.equal(tensor, model.state_dict()[name])
        assert tensor.data_ptr() != model.state_dict()[name].data_ptr()
    before, plain = copy.deepcopy(model.state_dict()), calibrate(model, Scheme())
    with torch.no_grad():
        for bits, own in ((Bits(4, 4), 4), (Bits(4, 8), 4), (Bits(2, 4), 2), (Bits(4, None), 4), (Bits(None, 4), None)):
            changed = copy.deepcopy(model)
            if own is not None:
                changed.load_state_dict(norms.get_tensors(own), strict=False)
            with quantization.at(bits):
                found = model(draw_images())
                assert model.state_dict().keys() == before.keys()
                assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
            reference = Quantization(changed)
            for point in reference.points:  # the ranges are those of the float network, with its own norms
                reference[point].observer = plain[point].observer
            with reference.at(bits):
                assert torch.equal(found, changed(draw_images()))
        with quantization.at(Bits.FP):
            found = model(draw_images())
        assert torch.equal(found, model(draw_images()))
    assert quantization.get_repair(Bits(4, 4)).num_bytes == sum(each.nbytes for each in norms.get_tensors(2).values())


def test_a_norm_that_assigns_its_statistics_keeps_its_own(monkeypatch):
    """Over several processes naive sync norms do ``self.running_mean += ...``, which sets the module's buffer."""
    monkeypatch.setattr("ssql_det.minid2.layers.batch_norm.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("ssql_det.minid2.layers.batch_norm.dist.get_world_size", lambda: 2)
    monkeypatch.setattr("ssql_det.minid2.layers.batch_norm.differentiable_all_reduce", lambda x: 2 * x)
    model = nn.Sequential(NaiveSyncBatchNorm(3)).double().train()
    norms = SwitchableNorms(model, [2])
    before = copy.deepcopy(model.state_dict())
    quantization = Quantization(model, [])
    quantization.switchable_norms = norms
    images = draw_images()
    with quantization.applying(Bits(2, 4)):
        model(images)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    var, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(norms.get_tensors(2)["0.running_mean"], 0.1 * mean)
    torch.testing.assert_close(norms.get_tensors(2)["0.running_var"], 0.9 + 0.1 * var)
    assert model[0].running_mean is model._modules["0"]._buffers["running_mean"]


def test_frozen_norms_have_gains_and_shifts_of_their_own_which_are_trained():
    model = FrozenBatchNorm2d.convert_frozen_batchnorm(build_model())
    quantization = calibrate(model)
    norms = quantization.add_switchable_norms([2])
    tensors = norms.get_tensors(2)
    assert {name.rpartition(".")[2] for name in tensors} == {"weight", "bias"}
    with quantization.at(Bits(2, 4)):
        model(draw_images()).square().mean().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in tensors.values())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_file_restores_the_sets(trained, tmp_path):
    model, quantization, norms = trained
    path = tmp_path / "q.safetensors"
    quantization.save(path)
    restored = Quantization.load(path, model, SWITCHABLE)
    assert restored.switchable_norms.weight_bits == norms.weight_bits == (2, 4)
    for bits in (2, 4):
        own, saved = (each.get_tensors(bits) for each in (norms, restored.switchable_norms))
        assert own.keys() == saved.keys()
        assert all(torch.equal(own[name], saved[name]) for name in own)
    with torch.no_grad(), quantization.at(Bits(2, 4)):
        expected = model(draw_images())
    with torch.no_grad(), restored.at(Bits(2, 4)):
        assert torch.equal(model(draw_images()), expected)
    norms.get_tensors(2)["stem.conv1.norm.running_var"].data[0] = -1
    quantization.save(path)
    with pytest.raises(UserError, match=r"damaged \(stem.conv1.norm.running_var has negative values\)"):
        Quantization.load(path, model)
    del norms.sets["2"]["stem/conv1/norm"]
    quantization.save(path)
    with pytest.raises(UserError, match="the norms of 2 bits are not those of the network"):
        Quantization.load(path, model)


def test_a_width_without_norms_is_refused_and_so_are_other_ways_to_get_them(trained):
    model, quantization, _ = trained
    with pytest.raises(UserError) as error, quantization.at(Bits(3, 4)):
        pass
    assert str(error.value) == (
        "the scheme norms=switchable needs switchable norms, which was not learned at 3w4a (learned at: 2w, 4w); use "
        "another bit-width, or train with switchable norms for this one"
    )
    with pytest.raises(UserError, match="learned at: none"), calibrate(model).at(Bits(2, 4)):
        pass
    with pytest.raises(UserError, match="for each bit-width: train with switchable norms, and give its file to sweep"):
        SWITCHABLE.check_learns_nothing([Bits(4, 4)])
    with pytest.raises(UserError, match="norms=switchable cannot be made of a trained network: train with switchable"):
        check_role_images(SWITCHABLE, Calibration(reconstruction_images=8))
    with pytest.raises(UserError, match="biases=corrected needs the float network's means"):
        Scheme.parse("norms=switchable, biases=corrected")
    with pytest.raises(UserError, match="this network has no norm with statistics; use norms=trained"):
        SwitchableNorms(nn.Conv2d(3, 4, 1), [4])


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    images = draw_images()
    launch(switchable_step.run, images, tmp_path, processes=2)
    expected = switchable_step.take_step(images)
    assert [name for name, gradient in expected.items() if gradient is None and name.startswith("sets.3.")] == []
    for rank in range(2):
        found, average = torch.load(tmp_path / f"{rank}.pt")
        for name, gradient in expected.items():
            assert (gradient is None) == (found[name] is None) == name.startswith("sets.2.")
            if gradient is not None:
                torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
        assert torch.equal(average, torch.full((3,), 0.5))
