"""Quantizers against NumPy: histograms and what is chosen from them, weights' scales by search, integer forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssql_det.core.errors import UserError
from ssql_det.quant import ACTIVATIONS, WEIGHTS, QuantPoint, Side
from ssql_det.quant.quantizers import Histogram, MinMaxObserver, TensorSpec

STREAMS = st.lists(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), max_size=6), max_size=6)
KINDS = (MinMaxObserver, Histogram)
ACT = TensorSpec(QuantPoint("relu", Side.OUTPUT))
WEIGHT = TensorSpec(QuantPoint("conv", Side.WEIGHT), (16, 8, 3, 3), 0)


def seen(kind, stream):
    observer = kind()
    for x in stream:
        observer.update(torch.as_tensor(x, dtype=torch.float32))
    return observer


def same(one, other):
    tensors = ((one.min_val, other.min_val), (one.max_val, other.max_val), (one.sums, other.sums))
    return all(ours is theirs or torch.equal(ours, theirs) for ours, theirs in tensors)


# ---- observers -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(STREAMS)
def test_the_ends_are_the_streams_least_and_greatest(stream):
    values = [value for x in stream for value in x]
    for kind in KINDS:
        observer = seen(kind, stream)
        assert (observer.min_val is None) == (not values)
        if values:
            assert [end.item() for end in observer.range] == [min(values), max(values)]


@settings(max_examples=100, deadline=None)
@given(STREAMS, STREAMS)
def test_merging_shards_is_seeing_both_streams_in_any_order(first, second):
    for kind in KINDS:
        whole = seen(kind, first + second)
        for parts in ((first, second), (second, first)):
            merged, other = (seen(kind, part) for part in parts)
            merged.merge(other)
            assert same(merged, whole)
            assert same(other, seen(kind, parts[1]))  # the other stays as it was


@settings(max_examples=100, deadline=None)
@given(STREAMS)
def test_a_histogram_counts_as_numpy_does_in_bins_of_its_width(stream):
    values = np.array([value for x in stream for value in x], np.float64)
    if not len(values):
        return
    histogram = seen(Histogram, stream)
    edges, counts = histogram.bins()
    places, expected = np.unique(np.floor(values / histogram.bin_width), return_counts=True)
    assert edges.tolist() == (places * histogram.bin_width).tolist()
    assert counts.tolist() == expected.tolist()
    reach, most = np.abs(values).max(), histogram.bin_width * Histogram.BINS / 2
    assert reach <= most
    assert reach >= most / 2 or reach < 2.0**-120  # no wider than it must be


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ends_are_in_the_type_that_is_computed_in(kind, dtype):
    x = (torch.randn(3, 7) / 3).to(dtype).requires_grad_()
    observer = kind()
    observer.update(2 * x)
    assert observer.min_val.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert not observer.max_val.requires_grad


# ---- activations against NumPy ---------------------------------------------------------------------------------------


def relu_like(generator):
    return np.maximum(generator.standard_normal(40_000) ** 3, 0)


def two_sided(generator):
    return generator.standard_normal(40_000) * np.exp(generator.standard_normal(40_000) / 2) + 0.3


def away_from_zero(generator):
    return generator.gamma(2.0, 1.0, 40_000) + 1.5


DATA = (relu_like, two_sided, away_from_zero, lambda generator: -relu_like(generator))


def quantizer_of(name, data, *values):
    quantizer = ACTIVATIONS.get(name)(ACT, *values)
    for part in torch.as_tensor(data).split(7001):
        quantizer.observer.update(part)
    return quantizer


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("percentile", [99.99, 99.9, 97.0, 100.0])
def test_percentiles_are_numpys_within_a_bin(make, percentile):
    data = make(np.random.default_rng(0))
    quantizer = quantizer_of("percentile", data, percentile)
    low, high = (end.item() for end in quantizer.choose_range(8))
    expected = np.quantile(data, [1 - percentile / 100, percentile / 100], method="inverted_cdf")
    assert np.abs([low, high] - expected).max() <= quantizer.observer.bin_width
    assert data.min() <= low <= high <= data.max()
    assert quantizer.choose_range(3) == quantizer.choose_range(8)


def error(data, low, high, bits, exponent):
    """Asymmetric, as published."""
    scale = (high - low) / (2**bits - 1)
    zero = -np.round(low / scale)
    on_grid = (np.clip(np.round(data / scale) + zero, 0, 2**bits - 1) - zero) * scale
    return (np.abs(data - on_grid) ** exponent).sum()


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("exponent", [2.0, 2.4])
def test_the_range_of_least_error_is_that_of_a_search_in_numpy(make, bits, exponent):
    """Over every pair of hundredths of both ends, on all values: what is found has the least error of all or next to
    it, and where the histogram's own values are searched it is the very pair."""
    data = make(np.random.default_rng(0))
    quantizer = quantizer_of("mse", data, exponent)
    low, high = (end.item() for end in quantizer.choose_range(bits))
    edges, counts = (each.numpy() for each in quantizer.observer.bins())
    centres = np.clip(edges + quantizer.observer.bin_width / 2, data.min(), data.max())
    nearest = np.clip(0, data.min(), data.max())
    parts = [range(1, 101) if end != nearest else [100] for end in (data.min(), data.max())]
    pairs = [
        (nearest + (data.min() - nearest) * a / 100, nearest + (data.max() - nearest) * b / 100)
        for a in (parts[0][::2] if len(parts[1]) > 1 else parts[0])  # both sides: every second is enough to bound it
        for b in (parts[1][::2] if len(parts[0]) > 1 else parts[1])
    ]

    def weighted(low, high):
        scale = (high - low) / (2**bits - 1)
        zero = -np.round(low / scale)
        on_grid = (np.clip(np.round(centres / scale) + zero, 0, 2**bits - 1) - zero) * scale
        return np.abs(centres - on_grid) ** exponent @ counts

    least = min(pairs, key=lambda pair: weighted(*pair))
    assert weighted(low, high) <= weighted(*least) * (1 + 1e-9)
    if min(map(len, parts)) == 1:
        assert np.abs(np.array(least) - [low, high]).max() <= quantizer.observer.bin_width
    assert error(data, low, high, bits, exponent) <= 1.02 * min(error(data, *pair, bits, exponent) for pair in pairs)
    assert error(data, low, high, bits, exponent) < error(data, data.min(), data.max(), bits, exponent)


def test_what_never_changes_stays_as_it_is():
    for name in ("minmax", "percentile", "mse"):
        quantizer = quantizer_of(name, np.full(9, 0.7))
        assert torch.equal(quantizer(torch.full((3,), 0.7), 4), torch.full((3,), 0.7))
        assert quantizer.quantize(torch.full((3,), 0.7), 4) is None


def test_a_grid_is_chosen_again_when_more_is_observed():
    quantizer = quantizer_of("mse", np.arange(9.0))
    before = quantizer.get_qparams(4)
    assert quantizer.get_qparams(4) is before
    quantizer.observer.update(torch.tensor([99.0]))
    assert quantizer.get_qparams(4).scale > before.scale


def test_a_width_that_a_quantizer_cannot_give_is_refused():
    from ssql_det.quant import Bits, Quantization, Scheme

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1))
    quantization = Quantization(model, scheme=Scheme(act="mse"))
    quantization.calibrate([torch.randn(2, 3, 4, 4)])
    with pytest.raises(UserError, match="act=mse supports 2 to 10 bits, not 12 as for 1:input"):
        quantization.at(Bits(12, 12)).__enter__()
    with quantization.at(Bits(12, 10)):
        model(torch.randn(1, 3, 4, 4))


# ---- weights against NumPy -------------------------------------------------------------------------------------------


def weight(seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(WEIGHT.shape, generator=generator, dtype=torch.float64) ** 3
    made[3] = 0
    return made


def searched(channel, bits, exponent, on_grid):
    """The scale of the least error among hundredths of the one that clips nothing; of equals the largest."""
    whole = np.abs(channel).max() / ((2**bits - 1) / 2)
    scales = [whole * (part / 100) for part in range(100, 0, -1)]
    return min(scales, key=lambda scale: (np.abs(channel - on_grid(channel, scale, bits)) ** exponent).sum())


def on_published_grid(channel, scale, bits):
    return np.clip(np.round(channel / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def on_centred_grid(channel, scale, bits):
    return (np.clip(np.round(channel / scale - 0.5), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5) * scale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("name", "values", "on_grid"),
    [("mse", (), on_published_grid), ("mse", (2.4,), on_published_grid), ("centred", (), on_centred_grid)],
)
def test_weights_are_those_of_a_search_in_numpy(name, values, on_grid, bits):
    ours = WEIGHTS.get(name)(WEIGHT, *values)(weight(), bits)
    for index, channel in enumerate(weight().numpy()):
        if index == 3:
            assert (ours[3] == 0).all()
            continue
        scale = searched(channel, bits, *(values or (2.0,)), on_grid)
        np.testing.assert_array_equal(ours[index].numpy(), on_grid(channel, scale, bits))


def test_centred_weights_have_no_bias_where_they_clip():
    """Of a symmetric weight; the published grid at the scale of least error has."""
    symmetric = torch.cat([weight()[:1], -weight()[:1]], dim=1)
    place = TensorSpec(WEIGHT.point, tuple(symmetric.shape), 0)
    low = {name: WEIGHTS.get(name)(place)(symmetric, 2) for name in ("centred", "mse")}
    assert low["centred"].mean().abs() < 1e-12
    assert low["mse"].mean().abs() > 1e-3


def test_a_transposed_weight_has_its_channels_on_the_other_axis():
    turned = weight().transpose(0, 1)
    for name in WEIGHTS:
        expected = WEIGHTS.get(name)(WEIGHT)(weight(), 3)
        place = TensorSpec(WEIGHT.point, tuple(turned.shape), 1)
        assert torch.equal(WEIGHTS.get(name)(place)(turned, 3), expected.transpose(0, 1))


def test_the_scale_is_searched_again_when_the_weight_has_changed():
    for name in ("mse", "centred"):
        quantizer, own = WEIGHTS.get(name)(WEIGHT), weight()
        before = quantizer(own, 3)
        assert torch.equal(quantizer(own, 3), before)
        own[0] *= 2
        changed = quantizer(own, 3)
        assert torch.equal(changed, WEIGHTS.get(name)(WEIGHT)(own, 3))
        assert not torch.equal(changed[0], before[0])


@pytest.mark.parametrize(("name", "halves", "centre"), [("mse", 1, 0.0), ("centred", 2, 0.5)])
def test_gradients_are_one_inside_the_grid_and_none_outside(name, halves, centre):
    own = weight().requires_grad_()
    quantizer = WEIGHTS.get(name)(WEIGHT)
    low = quantizer(own, 2)
    low.backward(torch.full_like(low, 3.0))
    scale = halves * quantizer.quantize(own, 2).scale
    codes = torch.round(own.detach() / torch.where(scale == 0, 1, scale) - centre)
    inside = (codes >= -2) & (codes <= 1)
    assert torch.equal(own.grad, torch.where(inside, 3.0, 0.0).double())
    assert 0 < inside.double().mean() < 1


# ---- in integers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(WEIGHTS))
@pytest.mark.parametrize("bits", [2, 4, 7, 8, 12])
def test_a_weights_codes_are_integers_with_its_very_values(name, bits):
    quantizer, own = WEIGHTS.get(name)(WEIGHT), weight().float()
    quantized = quantizer.quantize(own, bits)
    assert torch.equal(quantized.dequantize(), quantizer(own, bits))
    is_int8 = bits <= (7 if name == "centred" else 8)
    assert quantized.integers.dtype is (torch.int8 if is_int8 else torch.int16)
    assert max(channel.unique().numel() for channel in quantized.integers) <= 2**bits
    if name == "centred":
        assert (quantized.integers % 2 != 0).all()


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("bits", [3, 8, 10])
def test_an_activations_codes_are_integers_with_its_very_values(name, make, bits):
    data = torch.as_tensor(make(np.random.default_rng(0))).float()
    quantizer = quantizer_of(name, data)
    quantized = quantizer.quantize(data, bits)
    assert torch.equal(quantized.dequantize(), quantizer(data, bits))
    assert quantized.integers.dtype is (torch.uint8 if bits <= 8 else torch.int16)
    assert 0 <= quantized.integers.int().min() <= quantized.integers.int().max() < 2**bits
