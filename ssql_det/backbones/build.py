"""``build_backbone(name)``: torchvision's ResNets, their CIFAR forms, a narrow one for small machines, timm's models.

===================  =======================================================================================
``resnet50``         any ResNet of torchvision: ``resnet18`` ... ``wide_resnet101_2``
``cifar_resnet18``   the same with a 3x3 stem of stride 1 and no pool, for images of 32 pixels
``narrow_resnet``    four stages of one BasicBlock, 24 to 192 channels: a small machine's ResNet
``timm/<name>``      any model of timm
===================  =======================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock
from timm.models.resnet import ResNet as TimmResNet
from torch import nn

from ssql_det.core.errors import UserError, did_you_mean, printable

# The stem has as many channels as the first stage, so that its block needs no shortcut conv; from then on widths
# increase, so that every later one does. timm's BasicBlock and Detectron2's then agree part by part.
NARROW_WIDTHS = (24, 48, 96, 192)
NARROW_DEPTHS = (1, 1, 1, 1)

_FAMILIES = ("resnet", "resnext", "wide_resnet")
_CIFAR, _TIMM = "cifar_", "timm/"


@dataclass(frozen=True)
class Backbone:
    """A network that maps images [N, 3, H, W] to features [N, width].

    >>> backbone = build_backbone("resnet18")
    >>> backbone.width, backbone.module(torch.zeros(2, 3, 64, 64)).shape
    (512, torch.Size([2, 512]))
    """

    name: str
    module: nn.Module
    width: int

    @torch.no_grad()
    def require_size(self, size: int) -> None:
        """Refuse images that the network cannot take: some are made for one size alone."""
        training = self.module.training
        try:
            self.module.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError) as failure:
            reason = " ".join(str(failure).split())
            raise UserError(f"{self.name} cannot take images of {size} pixels: {printable(reason, 200)}") from failure
        finally:
            self.module.train(training)


def build_backbone(name: str, zero_init_residual: bool = False) -> Backbone:
    """A backbone with fresh random weights. ``zero_init_residual`` starts each residual branch at zero."""
    if name.startswith(_TIMM):
        return _timm_model(name, zero_init_residual)
    if name == "narrow_resnet":
        return _narrow_resnet(zero_init_residual)
    known = _torchvision_resnets()
    if name.removeprefix(_CIFAR) not in known:
        names = [*known, *(_CIFAR + each for each in known), "narrow_resnet"]
        others = f"known: {', '.join(known)}, each also as cifar_<name>; narrow_resnet; timm/<name>"
        raise UserError(f"there is no backbone {name!r}{did_you_mean(name, names)} ({others})")
    model = torchvision.models.get_model(name.removeprefix(_CIFAR), weights=None, zero_init_residual=zero_init_residual)
    width = model.fc.in_features
    model.fc = nn.Identity()
    if name.startswith(_CIFAR):
        model.conv1 = _stem_conv(64, kernel=3, stride=1)
        model.maxpool = nn.Identity()
    return Backbone(name, model, width)


def _torchvision_resnets() -> list[str]:
    return [name for name in torchvision.models.list_models(torchvision.models) if name.startswith(_FAMILIES)]


def _narrow_resnet(zero_init_residual: bool) -> Backbone:
    """Stem 7x7 of stride 2 and a pool of stride 2, as in any four-stage ResNet; strides 4, 8, 16 and 32."""
    block: Any = BasicBlock  # timm's annotation says an instance and means the class
    model: Any = TimmResNet(  # timm's plain stem has 64 channels, always; a deep one is as wide as it is told
        *(block, NARROW_DEPTHS, 0),
        channels=NARROW_WIDTHS,
        zero_init_last=zero_init_residual,
        stem_type="deep",
        stem_width=NARROW_WIDTHS[0] // 2,
    )
    model.conv1 = _stem_conv(NARROW_WIDTHS[0], kernel=7, stride=2)
    return Backbone("narrow_resnet", model, NARROW_WIDTHS[-1])


def _stem_conv(width: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _timm_model(name: str, zero_init_residual: bool) -> Backbone:
    wanted = name.removeprefix(_TIMM)
    if not timm.is_model(wanted):
        raise UserError(f"timm has no model {wanted!r}{did_you_mean(wanted, timm.list_models())}")
    model: Any = timm.create_model(wanted, pretrained=False, num_classes=0)
    if isinstance(model, TimmResNet):  # timm's own default is to start at zero
        model = timm.create_model(wanted, pretrained=False, num_classes=0, zero_init_last=zero_init_residual)
    elif zero_init_residual:
        raise UserError(f"{name} has no residual branches that could start at zero; leave zero_init_residual off")
    return Backbone(name, model, int(getattr(model, "head_hidden_size", model.num_features)))
