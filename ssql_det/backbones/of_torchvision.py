"""torchvision's classification models without their classifiers, and the CIFAR forms of its ResNets."""

from __future__ import annotations

from functools import partial
from typing import Any

import torchvision
from torch import nn

from ssql_det.backbones.backbone import BACKBONES, refuse_zero_init

_RESNETS = ("resnet", "resnext", "wide_resnet")
_AUXILIARY = ("googlenet", "inception_v3")  # in training they put out further classifiers' answers too


def _network(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    options = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    if name.startswith(_RESNETS):
        options = {"zero_init_residual": zero_init_residual}
    elif zero_init_residual:
        raise refuse_zero_init(name)
    model = torchvision.models.get_model(name, weights=None, **options)
    return model, _remove_classifier(model)


def _cifar_network(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    model, width = _network(name, zero_init_residual)
    model.conv1 = stem_conv(64, kernel=3, stride=1)
    model.maxpool = nn.Identity()
    return model, width


def stem_conv(width: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _remove_classifier(model: nn.Module) -> int:
    """Take out the last layer (SqueezeNet's is a conv) and a dropout right before it; the width that it was given."""
    path, last = [each for each in model.named_modules() if isinstance(each[1], nn.Linear | nn.Conv2d)][-1]
    parent, _, name = path.rpartition(".")
    holder: Any = model.get_submodule(parent)
    names = [each for each, _ in holder.named_children()]
    before = names[names.index(name) - 1]
    setattr(holder, name, nn.Identity())
    if isinstance(getattr(holder, before), nn.Dropout):
        setattr(holder, before, nn.Identity())
    return last.in_features if isinstance(last, nn.Linear) else last.in_channels


for _name in torchvision.models.list_models(torchvision.models):
    BACKBONES.register(_name)(partial(_network, _name))
    if _name.startswith(_RESNETS):
        BACKBONES.register(f"cifar_{_name}")(partial(_cifar_network, _name))
