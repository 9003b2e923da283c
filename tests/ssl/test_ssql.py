"""SSQL's step against the same written out by hand: no contexts, no hooks, float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from plain import Round, clamp
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from ssql_det.backbones import Backbone
from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, FixedBits, SampledBits
from ssql_det.ssl import SSQL, SimSiam, encoder_points

WIDTHS = (64, 6, 8, 10)


def simsiam(seed=0):
    torch.manual_seed(seed)
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0, channels=WIDTHS, zero_init_last=False)
    method = SimSiam(Backbone("small", backbone, WIDTHS[-1]), dim=12, hidden=5)
    for module in method.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return method.double().train()


def two_views(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=generator) for _ in range(2)]


# ---- by hand -------------------------------------------------------------------------------------------------------


def weight_on_grid(weight, bits):
    scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / ((2**bits - 1) / 2)
    return clamp(Round.apply(weight / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


class Pass:
    """One way through the network: float, while ranges are seen, or quantized by them."""

    def __init__(self, method, bits=None, ends=None):
        self.parameters = dict(method.named_parameters())
        self.bits, self.ends, self.statistics = bits, {} if ends is None else ends, {}

    def weight(self, path):
        weight = self.parameters[f"encoder.{path}.weight"]
        if self.bits is None:
            return weight
        eight = path == "backbone.conv1" or path.startswith("projector")
        return weight_on_grid(weight, 8 if eight else self.bits.weight)

    def act(self, place, x, bits=None):
        if self.bits is None:
            low, high = self.ends.get(place, (x.min().detach(), x.max().detach()))
            self.ends[place] = (torch.minimum(low, x.min().detach()), torch.maximum(high, x.max().detach()))
            return x
        (low, high), bits = self.ends[place], bits or self.bits.act
        scale = (high - low) / (2**bits - 1)
        zero = -torch.round(low / scale)
        return (clamp(Round.apply(x / scale) + zero, 0, 2**bits - 1) - zero) * scale

    def norm(self, path, x):
        over = [dim for dim in range(x.dim()) if dim != 1]
        mean, variance = x.mean(over, keepdim=True), x.var(over, unbiased=False, keepdim=True)
        self.statistics.setdefault(path, []).append((mean.flatten().detach(), x.var(over).flatten().detach()))
        x = (x - mean) / (variance + 1e-5).sqrt()
        if f"{path}.weight" in self.parameters:
            shape = [1, -1] + [1] * (x.dim() - 2)
            x = x * self.parameters[f"{path}.weight"].view(shape) + self.parameters[f"{path}.bias"].view(shape)
        return x

    def encode(self, x):
        x = F.relu(self.norm("encoder.backbone.bn1", F.conv2d(x, self.weight("backbone.conv1"), stride=2, padding=3)))
        x = F.max_pool2d(self.act("stem", x, 8), 3, 2, 1)
        for stage in range(1, 5):
            path, stride = f"backbone.layer{stage}.0", 1 if stage == 1 else 2
            y = F.conv2d(x, self.weight(f"{path}.conv1"), stride=stride, padding=1)
            y = self.act(f"{path}.conv2", F.relu(self.norm(f"encoder.{path}.bn1", y)))
            y = self.norm(f"encoder.{path}.bn2", F.conv2d(y, self.weight(f"{path}.conv2"), padding=1))
            if stage > 1:
                x = F.conv2d(x, self.weight(f"{path}.downsample.0"), stride=stride)
                x = self.norm(f"encoder.{path}.downsample.1", x)
            x = self.act(path, F.relu(y + x))
        x = x.mean((2, 3))
        for layer in (0, 3):
            x = F.relu(self.norm(f"encoder.projector.{layer + 1}", x @ self.weight(f"projector.{layer}").T))
        return self.norm("encoder.projector.7", x @ self.weight("projector.6").T)

    def predict(self, z):
        z = F.relu(self.norm("predictor.1", z @ self.parameters["predictor.0.weight"].T))
        return z @ self.parameters["predictor.3.weight"].T + self.parameters["predictor.3.bias"]


def cosine(one, other):
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def loss_of(way, encoded, targets):
    first, second = (way.predict(each) for each in encoded)
    return -(cosine(first, targets[1]).mean() + cosine(second, targets[0]).mean()) / 2


def by_hand(method, views, bits, predictions=True, targets=False, auxiliary=True):
    """The loss of a step, and in order what every norm has seen."""
    plain = Pass(method)
    encoded = [plain.encode(view) for view in views]
    low = Pass(method, bits, plain.ends)
    low_encoded = [low.encode(view) for view in views]
    held_against = [each.detach() for each in (low_encoded if targets else encoded)]
    losses = []
    if not predictions or auxiliary:
        losses.append(loss_of(plain, encoded, held_against))
    if predictions:
        losses.append(loss_of(low, low_encoded, held_against))
    return sum(losses) / len(losses), plain, low


def gradients(loss, method):
    return dict(zip(dict(method.named_parameters()), torch.autograd.grad(loss, list(method.parameters())), strict=True))


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-9 * value.abs().max().clamp(min=1e-9), name


# ---- a step --------------------------------------------------------------------------------------------------------

BITS = [Bits(2, 4), Bits(4, 4), Bits(5, 8), Bits(8, 8)]


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_a_step_is_what_the_paper_says(bits):
    method, views = simsiam(), two_views()
    expected, *_ = by_hand(method, views, bits)
    loss = SSQL(method, FixedBits(bits))(views, step=0)
    assert abs(loss - expected) < 1e-12
    same(gradients(loss, method), gradients(expected, method))


@pytest.mark.parametrize(("predictions", "targets", "auxiliary"), list(itertools.product([True, False], repeat=3)))
def test_the_switches_of_table_8(predictions, targets, auxiliary):
    method, views = simsiam(), two_views()
    if not predictions and not targets:
        with pytest.raises(UserError, match="quantizes predictions or targets"):
            SSQL(method, FixedBits(Bits(4, 4)), predictions, targets, auxiliary)
        return
    expected, *_ = by_hand(method, views, Bits(3, 5), predictions, targets, auxiliary)
    loss = SSQL(method, FixedBits(Bits(3, 5)), predictions, targets, auxiliary)(views, step=0)
    assert abs(loss - expected) < 1e-12
    same(gradients(loss, method), gradients(expected, method))


def test_the_views_may_be_swapped():
    method, views = simsiam(), two_views()
    one = SSQL(method, FixedBits(Bits(2, 4)))(views, step=0)
    other = SSQL(method, FixedBits(Bits(2, 4)))(views[::-1], step=0)
    assert abs(one - other) < 1e-12
    same(gradients(one, method), gradients(other, method))


def test_both_passes_update_the_statistics_of_norms():
    method, views = simsiam(), two_views()
    _, plain, low = by_hand(method, views, Bits(4, 4))
    SSQL(method, FixedBits(Bits(4, 4)))(views, step=0)
    for path in plain.statistics:
        if path.startswith("predictor"):
            continue
        mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        for seen_mean, seen_variance in plain.statistics[path] + low.statistics[path]:
            mean, variance = 0.9 * mean + 0.1 * seen_mean, 0.9 * variance + 0.1 * seen_variance
        norm = method.get_submodule(path)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-10, atol=1e-12)
        assert norm.num_batches_tracked == 4


def test_the_bits_are_those_of_the_step():
    method, views = simsiam(), two_views()
    ssql = SSQL(method, SampledBits(seed=3))
    for step in (0, 7):
        expected = SSQL(method, FixedBits(SampledBits(seed=3)(step)))(views, step=0)
        assert ssql(views, step) == expected
    assert ssql(views, 0) != ssql(views, 7)


def test_the_projector_is_at_8_bits_and_its_inputs_and_the_predictor_are_float():
    points = encoder_points(simsiam().encoder)
    projector = [point for point in points if point.path.startswith("projector")]
    assert [(point.key, point.bits) for point in projector] == [(f"projector.{n}:weight", 8) for n in (0, 3, 6)]
    assert not any("predictor" in point.path for point in points)


def test_simsiam_alone_is_the_float_loss():
    method, views = simsiam(), two_views()
    way = Pass(method)
    encoded = [way.encode(view) for view in views]
    expected = loss_of(way, encoded, [each.detach() for each in encoded])
    loss = method(views)
    assert abs(loss - expected) < 1e-12
    same(gradients(loss, method), gradients(expected, method))
