"""Small self-supervised methods in float64, and views for them, for tests of single steps and of two processes."""

from functools import partial

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from ssql_det.backbones import Backbone
from ssql_det.ssl import BYOL, MoCo, SimCLR, SimSiam

WIDTHS = (8, 10, 12, 16)  # of fewer than 8 channels, torch 2.14's strided 1x1 conv writes past its memory on AVX2
METHODS = {
    "simsiam": partial(SimSiam, dim=12, hidden=5),
    "byol": partial(BYOL, dim=12, hidden=5, momentum=0.9),
    "byol, last norm": partial(BYOL, dim=12, hidden=5, momentum=0.9, last_norm=True),
    "moco": partial(MoCo, dim=12, hidden=5, queue=10, temperature=0.2, momentum=0.9),
    "simclr": partial(SimCLR, dim=12, hidden=5, temperature=0.5),
    "simclr, cross": partial(SimCLR, dim=12, hidden=5, temperature=0.5, cross=True),
}


def make_small_method(kind):
    """A method as in the middle of a training: norms have weights, and a moving average differs from the network."""
    torch.manual_seed(0)
    stem = {"stem_type": "deep", "stem_width": WIDTHS[0] // 2}  # a plain one always has 64 channels
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0, channels=WIDTHS, zero_init_last=False, **stem)
    backbone.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
    method = METHODS[kind](Backbone("small", backbone, WIDTHS[-1]))
    for module in method.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    if hasattr(method, "momentum"):
        for parameter in method.momentum.parameters():
            parameter += 0.2 * parameter.std() * torch.randn_like(parameter)
    return method.double().train()


def make_two_views(images=6, seed=1, side=32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 3, side, side, dtype=torch.float64, generator=generator) for _ in range(2)]


def compute_gradients(loss, method):
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def assert_tensors_close(found, expected):
    """Same names; values within 1e-9 of a tensor's largest magnitude, which counts as at least 1e-6."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-9 * value.abs().max().clamp(min=1e-6), name
