"""Errors weighted by squared gradients of the network's loss: eq. 10 of BRECQ written out."""

from dataclasses import dataclass

import pytest
import torch
from support.networks import D2ResNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.ptq import METHODS, Block, find_backbone_blocks, reconstruct, reconstruction
from ssql_det.ptq.brecq_fisher import BrecqFisher
from ssql_det.ptq.errors import compute_errors
from ssql_det.ptq.fisher import compute_gradients, make_weights
from ssql_det.ptq.records import HELD_OUT_PERIOD
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.forward import evaluating, forward_images
from ssql_det.quant.quantizers.centred import CentredWeight
from ssql_det.quant.quantizers.mse import MseWeight

LOW = Bits(2, 4)
GRIDS = {"mse": lambda spec: MseWeight(spec, 2.4), "centred": CentredWeight}


def draw_images(count, seed=1):
    """Batches of one smooth image."""
    coarse = torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return list(nn.functional.interpolate(coarse, (32, 32), mode="bilinear").split(1))


def build(dtype=torch.float64):
    torch.manual_seed(0)
    model = D2ResNet().double()
    with torch.no_grad():
        for seed in range(20):  # so that norms have statistics
            model(torch.cat(draw_images(4, 100 + seed)))
    return model.eval().to(dtype)


def prepare(scheme, dtype=torch.float64):
    quantization = Quantization(build(dtype), scheme=Scheme.parse(scheme))
    quantization.calibrate([image.to(dtype) for image in draw_images(8, seed=2)])
    return quantization


class FeatureLoss:
    """The mean squared error of the outputs."""

    def __init__(self, model, images):
        self.images = images
        with torch.no_grad():
            self.targets = [model(image) for image in images]

    def __call__(self, model, index):
        return (model(self.images[index]) - self.targets[index]).square().mean()


def learn(quantization, compute_loss=None, blocks=None, dtype=torch.float64, **options):
    images = [image.to(dtype) for image in draw_images(8)]
    method = METHODS.get(quantization.scheme.weight.partition(":")[0])()
    blocks = find_backbone_blocks(quantization.model) if blocks is None else blocks
    loss = compute_loss or FeatureLoss(quantization.model, images)
    return reconstruct(quantization, LOW, None, blocks, images, forward_images, method, compute_loss=loss, **options)


def list_state(quantization):
    return quantization.repairs[str(LOW)].collect_state()


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():  # NaN stands for steps of bit-widths that were not used
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0, equal_nan=True)


# ---- the formulas --------------------------------------------------------------------------------------------------


def test_weights_of_several_outputs_are_squared_gradients_in_units_of_the_outputs():
    """A head with logits and deltas at two levels: ``(dL/d(z / rms(z)))^2``, divided by the mean over all elements."""
    generator = torch.Generator().manual_seed(0)

    def draw(channels):
        return [torch.randn(2, channels, n, n, dtype=torch.float64, generator=generator) for n in (6, 3)]

    gradients, powers = [(draw(3), draw(12)) for _ in range(2)], torch.tensor([0.25, 9.0], dtype=torch.float64)
    expected = [
        tuple([x**2 * power for x in each] for each, power in zip(pair, powers, strict=True)) for pair in gradients
    ]
    elements = torch.cat([x.flatten() for pair in expected for each in pair for x in each])
    found = make_weights(gradients, powers.unbind())
    for pair, other in zip(found, expected, strict=True):
        for ours, theirs in zip([*pair[0], *pair[1]], [*other[0], *other[1]], strict=True):
            torch.testing.assert_close(ours, theirs / elements.mean())


def test_the_weighted_error_is_the_mean_of_weighted_squares():
    generator = torch.Generator().manual_seed(0)
    x, y, w = (torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    [(error, channels)] = compute_errors([x[:1], x[1:]], [y[:1], y[1:]], [w[:1], w[1:]])
    torch.testing.assert_close(error, (w * (x - y) ** 2).sum() / (2 * 3 * 4 * 4))
    assert channels == 3


def test_tiny_gradients_have_weights_and_infinite_ones_are_refused():
    [weights] = make_weights([torch.tensor([[1e-30, 2e-30]])], [torch.tensor(1.0)])
    torch.testing.assert_close(weights, torch.tensor([[0.4, 1.6]]))
    with pytest.raises(UserError, match="has a gradient that is not finite; use weight=brecq"):
        make_weights([torch.tensor([[1.0, torch.nan]])], [torch.tensor(1.0)])


# ---- in a network --------------------------------------------------------------------------------------------------


def test_gradients_are_those_behind_the_quantized_blocks_and_a_float_rest(monkeypatch):
    quantization, recorded = prepare("weight=brecq-fisher:5, act=lsq"), {}

    def spy(model, block, compute_loss):
        recorded.setdefault(block.name, []).append(compute_gradients(model, block, compute_loss))
        return recorded[block.name][-1]

    monkeypatch.setattr(reconstruction, "compute_gradients", spy)
    results = {result.name: result for result in learn(quantization)}
    model, images = quantization.model, draw_images(8)
    assert [*recorded] == ["stem", "res2.0", "res2.1", "res3.0"]
    assert all(len(each) == len(images) for each in recorded.values())
    # The block res2.0 as it was: the stem is reconstructed, the block has nearest rounding and steps as calibrated.
    quantizers = quantization.repairs[str(LOW)].quantizers
    for point in [point for point in quantizers if point.path.startswith("res2.0")]:
        if point.is_weight:
            quantizers[point] = GRIDS[results["res2.0"].grid](quantization[point].spec)
        else:
            del quantizers[point]
    for image, [found] in zip(images, recorded["res2.0"], strict=True):
        with torch.no_grad(), quantization.applying(LOW, inside=["stem", "res2.0"]):
            output = model.res2[0](model.stem(image))
        output.requires_grad_()
        loss = (model.res3(model.res2[1](output)) - model(image).detach()).square().mean()
        (expected,) = torch.autograd.grad(loss, output)
        torch.testing.assert_close(found, expected)
        assert found.abs().max() > 0


def test_the_error_of_the_last_block_written_out():
    """There the gradient of the mean squared error is the error, so squares are weighted by themselves."""
    quantization = prepare("weight=brecq-fisher:5, act=lsq")
    *_, result = learn(quantization)
    model, quantizers = quantization.model, quantization.repairs[str(LOW)].quantizers
    with torch.no_grad(), quantization.applying(LOW):
        after = torch.cat([model(image) for image in draw_images(8)])
    for point in [point for point in quantizers if point.path.startswith("res3.0")]:
        if point.is_weight:
            quantizers[point] = GRIDS[result.grid](quantization[point].spec)
        else:
            del quantizers[point]
    with torch.no_grad(), quantization.applying(LOW):
        before = torch.cat([model(image) for image in draw_images(8)])
    target = model(torch.cat(draw_images(8))).detach()
    weights = (before - target) ** 2 / ((before - target) ** 2).mean()
    held_out = torch.arange(8) % HELD_OUT_PERIOD == HELD_OUT_PERIOD - 1
    for outputs, expected in ((before, result.before), (after, result.after)):
        error = (weights * (outputs - target) ** 2)[held_out].mean() / (target[~held_out] ** 2).mean()
        assert error.item() == pytest.approx(expected, rel=1e-6)
    assert result.is_kept
    assert result.after < result.before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_squared_gradients_are_plain_brecq(dtype):
    """A loss with the gradients 3 and -3 at all outputs of the network, which is one block."""
    images = [image.to(dtype) for image in draw_images(8)]
    signs = torch.where(torch.arange(32).view(1, 32, 1, 1) % 3 == 0, -3.0, 3.0).to(dtype)
    block = Block("all", ("stem", "res2", "res3"))
    found = []
    for name in ("brecq", "brecq-fisher"):
        quantization = prepare(f"weight={name}:10, act=lsq", dtype)
        results = learn(quantization, lambda model, index: (signs * model(images[index])).sum(), [block], dtype)
        found.append((results, list_state(quantization)))
    (plain, plain_state), (weighted, weighted_state) = found
    assert weighted == plain
    assert_same_state(weighted_state, plain_state)
    quantization = prepare("weight=brecq-fisher:10, act=lsq", dtype)
    assert learn(quantization, None, [block], dtype) != plain


@torch.no_grad()
def sum_detached(model, image):
    return model(image).sum()


@pytest.mark.parametrize("loss", [lambda model, image: model(image).mean() * 0, sum_detached])
def test_without_a_gradient_errors_are_plain_and_the_log_says_so(loss, caplog):
    plain, weighted = prepare("weight=brecq:5, act=lsq"), prepare("weight=brecq-fisher:5, act=lsq")
    images, expected = draw_images(8), learn(plain)
    with caplog.at_level("INFO", logger="ssql_det"):
        results = learn(weighted, lambda model, index: loss(model, images[index]))
    assert [(each.before, each.after) for each in results] == [(each.before, each.after) for each in expected]
    assert_same_state(list_state(weighted), list_state(plain))
    assert caplog.text.count("without weights, as the loss has no gradient here") == len(results)


def test_an_interrupted_reconstruction_goes_on_to_the_same_bits(tmp_path):
    scheme, path = "weight=brecq-fisher:10, act=lsq", tmp_path / "q.safetensors"
    whole = prepare(scheme, torch.float32)
    learn(whole, dtype=torch.float32)
    whole.save(tmp_path / "whole.safetensors")
    started, done = prepare(scheme, torch.float32), []

    def save_and_stop(result):
        started.save(path)
        done.append(result)
        raise ZeroDivisionError

    for _ in find_backbone_blocks(whole.model):
        with pytest.raises(ZeroDivisionError):
            learn(started, dtype=torch.float32, on_block_done=save_and_stop)
        started = Quantization.load(path, build(torch.float32))
    assert learn(started, dtype=torch.float32) == []
    assert len(done) == 4
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_windows_within_a_limit_of_bytes():
    quantization = prepare("weight=brecq-fisher:60, act=lsq")
    results = learn(quantization, max_bytes=8 * 3 * 8 * 300)
    assert sum(each.is_kept for each in results) >= 2


def test_in_place_operations_behind_a_block_and_its_later_calls_change_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1).double()

        def forward(self, x):
            first = self.conv(x)
            return self.conv(first.relu_()).sum() * 2

    model, image = Net(), draw_images(1)[0]
    [found] = compute_gradients(model, Block("conv", ("conv",)), lambda: model(image))
    output = model.conv(image).detach().requires_grad_()
    (expected,) = torch.autograd.grad(2 * model.conv(output.relu()).sum(), output)
    torch.testing.assert_close(found, expected)
    (layer,) = Block("all", ("conv",)).split_layers(["conv"])
    assert len(compute_gradients(model, layer, lambda: model(image))) == 1  # ``last`` ends it
    with pytest.raises(ValueError, match="the loss does not run the block conv"):
        compute_gradients(model, layer, lambda: torch.zeros(()))


# ---- the scheme ----------------------------------------------------------------------------------------------------


def test_the_scheme_names_the_method():
    assert str(Scheme.parse("weight=brecq-fisher:600, act=lsq")) == "weight=brecq-fisher:600, act=lsq"
    assert METHODS.get("brecq-fisher")() == BrecqFisher(is_weighted=True)
    assert Scheme.parse("weight=brecq-fisher").repairs == ("rounding",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("weight=brecq-fischer", "unknown weight quantizer 'brecq-fischer'; did you mean 'brecq-fisher'"),
        ("weight=brecq-fisher:0", "the iterations of brecq-fisher must be a whole number from 1 to 1000000, as in"),
        ("weight=brecq-fisher:600:1", "'brecq-fisher' takes 1 parameter"),
        ("brecq-fisher", "'brecq-fisher' is no activation quantizer"),
    ],
)
def test_other_texts_are_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        Scheme.parse(text)


def test_a_weighted_method_needs_a_loss():
    @dataclass(frozen=True)
    class Mine(BrecqFisher):
        pass

    quantization = prepare("weight=brecq-fisher:5")
    with evaluating(quantization.model), pytest.raises(ValueError, match="Mine weighs errors by the gradients"):
        reconstruct(quantization, LOW, None, [], [], forward_images, Mine())
