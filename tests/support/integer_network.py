"""A small network with every kind of layer, and its quantization in placement ``integer``."""

from collections import OrderedDict

import torch
from torch import nn

from ssql_det.quant import Quantization, QuantPoint, Scheme, Side

SCHEME = Scheme(placement="integer")
IMAGE_RANGE = (-2.0, 2.5)
# name, layer, axis of its output channels, its norm
LAYERS = (
    ("plain", lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), 0, nn.BatchNorm2d(4)),
    ("depthwise", lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), 0, nn.BatchNorm2d(4, affine=False)),
    ("biased", lambda: nn.Conv2d(4, 6, 1), 0, None),
    ("unbiased", lambda: nn.Conv2d(6, 4, 1, bias=False), 0, None),
    ("transposed", lambda: nn.ConvTranspose2d(4, 5, 2, stride=2), 1, nn.BatchNorm2d(5)),
    ("linear", lambda: nn.Linear(5, 7), 0, None),
)


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def make_network():
    """Every kind of layer, with and without norm and bias. The norms' weights are positive, negative and 0."""
    torch.manual_seed(3)
    modules = OrderedDict()
    for name, build, _, norm in LAYERS:
        if name == "linear":
            modules["permuted"] = ChannelsLast()
        modules[name] = build()
        if norm is not None:
            modules[f"{name}_norm"] = norm = type(norm)(norm.num_features, affine=norm.affine)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 2)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
                norm.weight.data[:2] = torch.tensor([0.0, -0.8])
        modules[f"{name}_relu"] = nn.ReLU()
    network = nn.Sequential(modules).double().eval()
    network.biased.weight.data[2] = 0
    return network


def make_points():
    for index, (name, *_) in enumerate(LAYERS):
        yield QuantPoint(name, Side.INPUT, include_zero=True, fixed_range=None if index else IMAGE_RANGE)
        yield QuantPoint(name, Side.WEIGHT)
    yield QuantPoint("linear", Side.OUTPUT, 8, include_zero=True)


def images(count=2, seed=0):
    return torch.randn(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_quantization(scheme=SCHEME, network=None, points=None):
    quantization = Quantization(network or make_network(), make_points() if points is None else points, scheme)
    quantization.calibrate([images()])
    return quantization
