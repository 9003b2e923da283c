"""Learned rounding: ``SoftRounding`` against AdaRound's formulas in NumPy, and ``LearnedRounding``, its result."""

import copy

import numpy as np
import pytest
import torch

from ssql_det.core.errors import UserError
from ssql_det.quant import WEIGHTS, Bits, Quantization, QuantizedTensor, QuantPoint, Scheme, Side
from ssql_det.quant.quantizers import LearnedRounding, SoftRounding, TensorSpec, WeightGrid
from ssql_det.quant.quantizers.centred import CentredWeight
from ssql_det.quant.quantizers.mse import MseWeight
from ssql_det.quant.repair import Repair

SPEC = TensorSpec(QuantPoint("conv", Side.WEIGHT), (6, 4, 3, 3), 0)
BASES = {"mse": MseWeight(SPEC), "mse:2.4": MseWeight(SPEC, 2.4), "centred": CentredWeight(SPEC)}
OFFSETS = {"mse": 0.0, "mse:2.4": 0.0, "centred": 0.5}


def make_weight(dtype=torch.float64):
    weight = torch.randn(SPEC.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    weight[3] = 0
    return weight.to(dtype)


def make_soft(base="mse", bits=3, dtype=torch.float64):
    return SoftRounding(SPEC, make_weight(dtype), BASES[base].choose_grid(make_weight(dtype), bits))


def on_each_grid(test):
    return pytest.mark.parametrize("base", BASES)(pytest.mark.parametrize("bits", [2, 4, 8])(test))


def compute_soft(v, base, bits):
    """The source's formula; also h."""
    weight = make_weight().numpy()
    scale = BASES[base].choose_grid(make_weight(), bits).scale.numpy()
    ratio = weight / np.where(scale == 0, 1, scale) - OFFSETS[base]
    h = np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)
    integers = np.clip(np.floor(ratio) + h, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (integers + OFFSETS[base]) * scale, h


# ---- while it is learned ---------------------------------------------------------------------------------------------


@on_each_grid
def test_the_soft_weight_is_at_first_the_weight_inside_the_grid(base, bits):
    weight, soft = make_weight(), make_soft(base, bits)
    scale, offset = soft.scale, OFFSETS[base]
    low, high = ((end + offset) * scale for end in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    torch.testing.assert_close(soft(weight, bits), weight.clamp(low, high), rtol=0, atol=1e-12)
    assert (weight > high).any() or bits == 8
    assert (soft(weight, bits)[3] == 0).all()


@on_each_grid
def test_hardened_at_once_it_is_nearest_rounding(base, bits):
    weight, hardened = make_weight(), make_soft(base, bits).harden()
    expected = BASES[base].quantize(weight, bits)
    ratio = BASES[base].choose_grid(weight, bits).divide(weight)
    is_tie = ratio % 1 == 0.5  # where the grid reaches the largest weight, and in channels of zeros
    assert torch.equal(hardened.integers[~is_tie], expected.integers[~is_tie])
    assert hardened.integers.dtype is expected.integers.dtype
    assert torch.equal(hardened.dequantize()[3], weight[3])
    assert is_tie.double().mean() < 0.2


def test_a_tie_is_rounded_up():
    weight = torch.tensor([[-1.5, -0.5, 0.5, 1.5, 0.5 - 2.0**-25]])
    spec = TensorSpec(SPEC.point, (1, 5), 0)
    rounding = SoftRounding(spec, weight, WeightGrid(torch.ones(1, 1), 0.0, 4))
    assert rounding.harden().integers.tolist() == [[-1, 0, 1, 2, 0]]


@on_each_grid
def test_values_gradients_and_regularization_equal_the_formulas(base, bits):
    """Gradients by central differences."""
    soft, weight = make_soft(base, bits), make_weight().requires_grad_()
    generator = np.random.default_rng(0)
    v, grad = 2 * generator.standard_normal(SPEC.shape), generator.standard_normal(SPEC.shape)
    soft.v.data = torch.as_tensor(v)
    output, beta = soft(weight, bits), 5.0
    np.testing.assert_allclose(output.detach().numpy(), compute_soft(v, base, bits)[0], rtol=0, atol=1e-12)

    def compute_loss(v):  # per element: each depends on its own v only
        value, h = compute_soft(v, base, bits)
        return value * grad + 0.3 * (1 - np.abs(2 * h - 1) ** beta)

    loss = (output * torch.as_tensor(grad)).sum() + 0.3 * soft.regularization(beta)
    assert abs(loss.item() - compute_loss(v).sum()) < 1e-9
    loss.backward()
    expected = (compute_loss(v + 1e-6) - compute_loss(v - 1e-6)) / 2e-6
    np.testing.assert_allclose(soft.v.grad.numpy(), expected, rtol=0, atol=1e-7)
    assert weight.grad is None


def test_the_regularization_is_0_only_where_all_is_rounded():
    soft = make_soft()
    for beta in (2.0, 20.0):
        with torch.no_grad():
            soft.v.copy_(torch.where(soft.v > 0, 2.4, -2.4))  # beyond log(11), where h is 0 or 1
            assert set(soft.compute_h().unique().tolist()) == {0.0, 1.0}
            assert soft.regularization(beta) == 0
            soft.v[0, 0, 0, 0] = 2.39
            assert soft.regularization(beta) > 0


@pytest.mark.parametrize("kind", [MseWeight, CentredWeight])
def test_learning_beats_nearest_rounding_and_ends_at_0_or_1(kind):
    """AdaRound's loss on correlated inputs of a linear layer; the error is that of other inputs."""
    generator = torch.Generator().manual_seed(1)
    spec, weight = TensorSpec(QuantPoint("fc", Side.WEIGHT), (8, 36)), torch.randn(8, 36, generator=generator).double()
    mixing = torch.randn(36, 36, generator=generator).double() / 6
    inputs, held_out = (torch.randn(256, 36, generator=generator).double() @ mixing for _ in range(2))
    base = kind(spec)
    soft = SoftRounding(spec, weight, base.choose_grid(weight, 3))

    def error(quantized, x):
        return (x @ (quantized - weight).T).square().sum(1).mean()

    optimizer = torch.optim.Adam([soft.v], lr=0.1)
    for step in range(300):
        optimizer.zero_grad()
        (error(soft(weight, 3), inputs) + 0.3 * soft.regularization(beta=20 - 18 * step / 300)).backward()
        optimizer.step()
    assert ((soft.compute_h() - 0.5).abs() > 0.49).double().mean() > 0.98
    hard = soft.harden().dequantize().to(weight.dtype)
    assert error(hard, held_out) < 0.6 * error(base(weight, 3), held_out)


def test_its_state_is_saved():
    source, target = make_soft(), make_soft()
    source.v.data.normal_(generator=torch.Generator().manual_seed(2))
    assert not torch.equal(source(make_weight(), 3), target(make_weight(), 3))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(make_weight(), 3), target(make_weight(), 3))
    with pytest.raises(ValueError, match="conv:weight is learned for 3 bits, not 4"):
        target(make_weight(), 4)


# ---- what was learned ------------------------------------------------------------------------------------------------


def make_learned(base="centred", bits=4, name="brecq", dtype=torch.float32):
    """Integers that nearest rounding does not give."""
    soft = make_soft(base, bits, dtype)
    soft.v.data.normal_(generator=torch.Generator().manual_seed(2))
    quantizer = WEIGHTS.get(name)(SPEC)
    quantizer.set_integers(soft.harden())
    return quantizer, soft


@on_each_grid
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_gives_the_hardened_weight(base, bits, dtype):
    weight = make_weight(dtype).requires_grad_()
    quantizer, soft = make_learned(base, bits, dtype=dtype)
    output = quantizer(weight, bits)
    assert torch.equal(output, soft.harden().dequantize().to(dtype))
    assert torch.equal(quantizer(weight.half(), bits), output.half())
    integers = np.floor(make_weight(dtype).numpy() / soft.scale.where(soft.scale != 0, 1).numpy() - OFFSETS[base])
    integers = np.clip(integers + (soft.v.detach().numpy() >= 0), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    expected = (integers + OFFSETS[base]) * soft.scale.numpy()
    np.testing.assert_array_equal(output.detach().numpy(), expected)
    output.backward(torch.full_like(output, 3.0))
    assert (weight.grad == 3).all()


@pytest.mark.parametrize("name", ["adaround", "brecq", "qdrop"])
def test_without_integers_of_this_bit_width_it_is_an_error(name):
    message = f"weight={name} has no learned rounding at conv:weight for this bit-width, 3; run `ssql-det quantize`"
    for base in BASES:
        for quantizer in (WEIGHTS.get(name)(SPEC), make_learned(base, 4, name)[0]):
            with pytest.raises(UserError, match=message):
                quantizer(make_weight(), 3)


def test_integers_of_a_file_get_the_memory_format_of_the_weight():
    """Else a convolution would differ in its last digits before and after a file."""
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    quantizer = WEIGHTS.get("brecq")(TensorSpec(QuantPoint("conv", Side.WEIGHT), tuple(weight.shape), axis=0))
    integers = torch.randint(-2, 2, weight.shape, dtype=torch.int8)
    quantizer.set_integers(QuantizedTensor(integers, torch.ones(4, 1, 1, 1), torch.zeros(4, 1, 1, 1)))
    for x in (weight, weight.contiguous()):
        assert quantizer(x, bits=2).stride() == x.stride()
        assert torch.equal(quantizer.quantize(x, bits=2).integers, integers)


def test_the_scheme_gives_the_iterations():
    assert Scheme.parse("weight=qdrop:1000.0") == Scheme(weight="qdrop")
    scheme = Scheme.parse("weight=brecq:20000, act=lsq:2.4")
    assert str(scheme) == "weight=brecq:20000, act=lsq:2.4"
    assert Scheme.parse(str(scheme)) == scheme
    assert scheme.build_quantizer(SPEC).iterations == 20_000
    assert Scheme.parse("weight=adaround").build_quantizer(SPEC).iterations == 1000
    for text in ("0", "0.5", "1000001", "nan", "inf", "-3"):
        with pytest.raises(
            UserError, match="iterations of brecq must be a whole number from 1 to 1000000, as in brecq"
        ):
            Scheme.parse(f"weight=brecq:{text}")
    with pytest.raises(UserError, match=r"the exponent of lsq must be 1 to 10, as in lsq:2\.4; got 0\.5"):
        Scheme.parse("act=lsq:0.5")


@on_each_grid
def test_the_state_is_saved(base, bits):
    source, _ = make_learned(base, bits)
    state = source.state_dict()
    assert state["integers"].dtype is (torch.int8 if bits <= 7 or base != "centred" else torch.int16)
    for target in (WEIGHTS.get("brecq")(SPEC), make_learned("mse", 3)[0]):
        target.load_state_dict(state)
        assert torch.equal(copy.deepcopy(target)(make_weight(), bits), source(make_weight(), bits))
        assert target.state_dict()["integers"].dtype is state["integers"].dtype
        target.load_state_dict(WEIGHTS.get("brecq")(SPEC).state_dict())
        assert not target.is_learned


INVALID = {
    "shape": (lambda state: state.update(integers=state["integers"][1:]), r"shape \[5, 4, 3, 3\]"),
    "empty": (lambda state: state.update(integers=state["integers"][:0]), r"shape \[0, 4, 3, 3\]"),
    "scale only": (lambda state: state.update(integers=torch.empty(0, dtype=torch.int8)), r"have shape \[0\]"),
    "shape of scale": (lambda state: state.update(scale=state["scale"].flatten()), r"their scale \[6\]"),
    "other axis": (lambda state: state.update(scale=torch.ones(1, 4, 1, 1)), r"their scale \[1, 4, 1, 1\]"),
    "floats": (lambda state: state.update(integers=state["integers"].float()), r"are torch\.float32"),
    "whole scale": (lambda state: state.update(scale=state["scale"].int()), r"scale is torch\.int32"),
    "NaN": (lambda state: state["scale"].fill_(torch.nan), "negative or not finite"),
    "infinite": (lambda state: state["scale"].fill_(torch.inf), "negative or not finite"),
    "negative": (lambda state: state["scale"].neg_(), "negative or not finite"),
}


@pytest.mark.parametrize(("damage", "message"), INVALID.values(), ids=INVALID)
def test_an_invalid_state_is_an_error(damage, message):
    source, target = make_learned()[0], make_learned("mse", 3)[0]
    before = target(make_weight(), 3)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    damage(state)
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        target.set_integers(QuantizedTensor(state["integers"], state["scale"], torch.zeros(())))
    assert torch.equal(target(make_weight(), 3), before)
    with pytest.raises(ValueError, match="the zero point of conv:weight is not 0"):
        target.set_integers(QuantizedTensor(**vars(source.quantize(make_weight(), 4)) | {"zero_point": torch.ones(())}))


def test_a_file_keeps_the_integers_of_a_bit_width_and_a_damaged_one_says_so(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(3)))
    quantization = Quantization(model, scheme=Scheme.parse("weight=qdrop, act=lsq"))
    images = torch.randn(2, 3, 4, 4)
    quantization.calibrate([images])
    learned = {point: copy.deepcopy(quantization[point]) for point in quantization.points if point.is_weight}
    for point, quantizer in learned.items():
        assert isinstance(quantizer, LearnedRounding)
        quantizer.set_integers(CentredWeight(quantizer.spec).quantize(model.get_submodule(point.path).weight, 8))
    quantization.repairs["8w4a"] = Repair(quantizers=learned, made=("rounding",))

    def run(quantization):
        with quantization.at(Bits(8, 4)), torch.no_grad():
            return model(images)

    expected = run(quantization)
    quantization.save(tmp_path / "q.safetensors")
    loaded = Quantization.load(tmp_path / "q.safetensors", model)
    assert torch.equal(run(loaded), expected)
    with pytest.raises(UserError, match=r"needs rounding, which was not learned at 8w8a \(learned at: 8w4a\)"):
        loaded.at(Bits(8, 8)).__enter__()
    loaded.repairs["8w4a"].quantizers[quantization.points[0]].scale[0] = -1
    loaded.save(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"bad\.safetensors is damaged \(the scale of 0:weight is negative"):
        Quantization.load(tmp_path / "bad.safetensors", model)
