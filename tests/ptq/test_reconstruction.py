"""Reconstruction of small networks: what is learned, what is kept, and that it can be resumed."""

import copy

import numpy as np
import pytest
import torch
from support.networks import CifarResNet, D2ResNet, PlainNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.ptq import METHODS, find_backbone_blocks, reconstruct
from ssql_det.ptq.brecq import Brecq
from ssql_det.ptq.errors import compute_errors
from ssql_det.ptq.qdrop import DroppingQuantizer, QDrop
from ssql_det.ptq.reconstruction import HELD_OUT_PERIOD
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.forward import forward_images
from ssql_det.quant.hooks import recording_outputs
from ssql_det.quant.integer_form import compute_integer_form
from ssql_det.quant.quantizers import LearnedRounding
from ssql_det.quant.quantizers.centred import CentredWeight
from ssql_det.quant.quantizers.mse import MseWeight

LOW = Bits(2, 4)


def build(network=D2ResNet):
    """A network with the statistics of random smooth images."""
    torch.manual_seed(0)
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        for seed in range(20):
            model(torch.cat(draw_images(4, 100 + seed)))
    return model.eval()


def draw_images(count, seed=1):
    """Batches of one smooth image."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return list(nn.functional.interpolate(coarse, (32, 32), mode="bilinear").split(1))


def prepare(scheme, network=D2ResNet):
    quantization = Quantization(build(network), scheme=Scheme.parse(scheme))
    quantization.calibrate(draw_images(8, seed=2))
    return quantization


def learn(quantization, bits=LOW, blocks=None, **options):
    method = METHODS.get(quantization.scheme.weight.partition(":")[0])()
    blocks = find_backbone_blocks(quantization.model) if blocks is None else blocks
    return reconstruct(quantization, bits, None, blocks, draw_images(16), forward_images, method, **options)


def list_state(quantization):
    return quantization.repairs[str(LOW)].collect_state()


def get_weights(quantization):
    return {point: q for point, q in quantization.repairs[str(LOW)].quantizers.items() if point.is_weight}


@pytest.mark.parametrize("name", ["adaround", "brecq", "qdrop"])
@pytest.mark.parametrize("network", [D2ResNet, CifarResNet, PlainNet])
def test_errors_of_blocks_fall_and_weights_are_rounded_up_or_down(name, network):
    quantization = prepare(f"weight={name}:80, act=lsq", network)
    model = quantization.model
    before = copy.deepcopy(model.state_dict())
    results = learn(quantization)
    assert len(results) >= 3
    assert all(each.after < each.before for each in results if each.is_kept)
    assert sum(each.is_kept for each in results) >= len(results) * 2 / 3
    grids = {"mse": lambda spec: MseWeight(spec, 2.4), "centred": CentredWeight}
    used = set()
    for point, quantizer in get_weights(quantization).items():
        weight = model.get_submodule(point.path).weight.detach()
        bits, learned = point.bits or LOW.weight, quantizer.quantize(weight, point.bits or LOW.weight)
        grid = {
            kind: build(quantization[point].spec).choose_grid(weight, bits)
            for kind, build in grids.items()
            if torch.equal(build(quantization[point].spec).quantize(weight, bits).scale, learned.scale)
        }
        kind, grid = next(iter(grid.items()))
        used.add(kind)
        ratio = weight / grid.scale - grid.offset
        integers = learned.integers.float() if kind == "mse" else (learned.integers.float() - 1) / 2
        low, high = (each.clamp(grid.qmin, grid.qmax) for each in (ratio.floor(), ratio.floor() + 1))
        assert ((integers == low) | (integers == high)).all()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(p.requires_grad for q in quantization.repairs[str(LOW)].quantizers.values() for p in q.parameters())


@pytest.mark.parametrize("bits", [Bits(8, 8), LOW], ids=str)
def test_with_placement_integer_all_integers_fit_into_8_bits(bits):
    quantization = prepare("weight=brecq:1, placement=integer")
    results = learn(quantization, bits)
    quantization.repairs[str(bits)].made = quantization.scheme.repairs
    layers = compute_integer_form(quantization, bits).layers  # which refuses others
    assert len(layers) == 12
    assert {each.grid for each in results} == ({"mse"} if bits.weight == 8 else {"mse", "centred"})


@pytest.mark.parametrize("name", ["adaround", "brecq", "qdrop"])
def test_the_reported_errors_are_those_of_the_network(name):
    """Of the last block, with the network run from the image: outputs of images that were kept for that."""
    quantization = prepare(f"weight={name}:80, act=lsq")
    *_, last = learn(quantization)
    blocks = find_backbone_blocks(quantization.model)
    path = last.name
    held_out, trained = draw_images(16)[HELD_OUT_PERIOD - 1 :: HELD_OUT_PERIOD], draw_images(16)
    del trained[HELD_OUT_PERIOD - 1 :: HELD_OUT_PERIOD]
    with torch.no_grad(), recording_outputs(quantization.model, [path]) as targets:
        [quantization.model(image) for image in [*held_out, *trained]]
    with torch.no_grad(), quantization.applying(LOW), recording_outputs(quantization.model, [path]) as outputs:
        [quantization.model(image) for image in held_out]
    error = np.mean([(x - y).square().mean() for x, y in zip(outputs, targets[:4], strict=True)])
    assert len(blocks) == 4
    expected = last.after if last.is_kept else last.before
    assert error / np.mean([x.square().mean() for x in targets[4:]]) == pytest.approx(expected, rel=1e-4)


def test_errors_of_several_outputs():
    """A tuple has several outputs; a list is one output, at all its levels together."""
    generator = np.random.default_rng(0)
    logits, deltas = ([generator.standard_normal((2, c, n, n)) for n in (6, 3)] for c in (3, 12))
    others = [[x + generator.standard_normal(x.shape) for x in each] for each in (logits, deltas)]

    def to_tensors(value):
        return tuple([torch.as_tensor(x) for x in each] for each in value)

    for found, ours, theirs in zip(
        compute_errors(to_tensors(others), to_tensors((logits, deltas))), others, (logits, deltas), strict=True
    ):
        square_sum = sum(((x - y) ** 2).sum() for x, y in zip(ours, theirs, strict=True))
        positions = sum(x[:, 0].size for x in ours)
        assert found[0].item() == pytest.approx(square_sum / positions / len(ours[0][0]))
        assert found[1] == len(ours[0][0])


class Interrupted(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("name", ["adaround", "qdrop"])
def test_an_interrupted_reconstruction_goes_on_to_the_same_bits(name, tmp_path):
    scheme = f"weight={name}:20, act=lsq"
    whole, path = prepare(scheme), tmp_path / "q.safetensors"
    learn(whole)
    done = []

    def save_and_stop(result):
        started.save(path)
        done.append(result)
        if len(done) % 2 == 0:
            raise Interrupted

    started = prepare(scheme)
    for _ in range(20):
        try:
            learn(started, on_block_done=save_and_stop)
            break
        except Interrupted:
            started = Quantization.load(path, build())
    assert len(done) == len(find_backbone_blocks(whole.model)) if name == "qdrop" else len(done) > 4
    assert list_state(started).keys() == list_state(whole).keys()
    for key, tensor in list_state(whole).items():  # NaN stands for steps of bit-widths that were not used
        torch.testing.assert_close(list_state(started)[key], tensor, rtol=0, atol=0, equal_nan=True)
    images = draw_images(2)[0]
    with torch.no_grad(), whole.applying(LOW), started.applying(LOW):
        assert torch.equal(whole.model(images), started.model(images))


def test_a_block_that_does_not_get_better_is_left_as_it_was(caplog):
    """A learning rate of 1000 rounds at random."""
    quantization = prepare("weight=brecq:5, act=lsq")
    method, blocks = Brecq(learning_rate=1e3), find_backbone_blocks(quantization.model)
    with caplog.at_level("INFO", logger="ssql_det"):
        results = reconstruct(quantization, LOW, None, blocks, draw_images(16), forward_images, method)
    assert not any(each.is_kept for each in results)
    assert "res2.0: left as it was (error 0.097 -> " in caplog.text
    assert all(point.is_weight for point in quantization.repairs[str(LOW)].quantizers)  # steps as calibrated
    for point, quantizer in get_weights(quantization).items():
        weight, bits = quantization.model.get_submodule(point.path).weight, point.bits or LOW.weight
        bases = MseWeight(quantizer.spec, 2.4), CentredWeight(quantizer.spec)
        learned = quantizer.quantize(weight, bits).dequantize()
        assert any(torch.equal(base.quantize(weight, bits).dequantize(), learned) for base in bases)


def test_small_windows_give_the_same_kind_of_result():
    quantization = prepare("weight=brecq:80, act=lsq")
    results = learn(quantization, max_bytes=16 * 3 * 4 * 300)
    assert sum(each.is_kept for each in results) >= 2


def test_qdrop_quantizes_some_elements():
    quantization = prepare("weight=qdrop, act=lsq")
    point = next(point for point in quantization.points if not point.is_weight)
    x = torch.rand(64, 64)
    quantized = quantization[point](x, 4).detach()
    dropping = DroppingQuantizer(quantization[point], 0.5, torch.Generator().manual_seed(0))
    first, second = dropping(x, 4).detach(), dropping(x, 4).detach()
    assert ((first == quantized) | (first == x)).all()
    assert (first == quantized).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(first, second)
    [mixed] = QDrop(probability=0.25).mix_inputs([x], [-x], torch.Generator().manual_seed(0))
    assert (mixed == x).double().mean().item() == pytest.approx(0.25, abs=0.05)
    assert (mixed.abs() == x).all()


def test_mistakes():
    with pytest.raises(UserError, match="weight=mse does not learn its rounding; use weight=brecq"):
        reconstruct(
            prepare("mse"), LOW, None, find_backbone_blocks(build()), [], forward_images, METHODS.get("brecq")()
        )
    quantization = prepare("weight=brecq")
    blocks = find_backbone_blocks(quantization.model)
    with pytest.raises(UserError, match=r"res3\.0\.shortcut:weight is not in exactly one block \(4 such weight"):
        learn(quantization, blocks=blocks[:-1])
    with pytest.raises(UserError, match=r"stem\.conv1:weight is not in exactly one block"):
        learn(quantization, blocks=[*blocks, blocks[0]])
    with pytest.raises(UserError, match="reconstruction needs at least 4 images, got 3"):
        reconstruct(quantization, LOW, None, blocks, draw_images(3), forward_images, METHODS.get("brecq")())
    with pytest.raises(UserError, match="does not reach the block stem"):
        reconstruct(quantization, LOW, None, blocks, draw_images(4), lambda *_: None, METHODS.get("brecq")())


def test_a_float_width_has_nothing_to_learn():
    quantization = prepare("weight=brecq")
    assert learn(quantization, Bits.FP) == []
    assert isinstance(quantization[quantization.points[0]], LearnedRounding)
