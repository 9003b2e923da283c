"""``build_backbone(name)``: torchvision's models, CIFAR forms of ResNets, a narrow one for small machines, timm's.

===================  =======================================================================================
``resnet50``         any classification model of torchvision: ``mobilenet_v2``, ``regnet_y_400mf``, ``vit_b_16``
``cifar_resnet18``   a ResNet with a 3x3 stem of stride 1 and no pool, for images of 32 pixels
``narrow_resnet``    four stages of one BasicBlock, 24 to 192 channels: a small machine's ResNet
``timm/<name>``      any model of timm
``my_net``           what a module has registered in ``BACKBONES``
===================  =======================================================================================
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from ssql_det.backbones.backbone import BACKBONES, Backbone, refuse_zero_init
from ssql_det.backbones.of_torchvision import stem_conv
from ssql_det.core.errors import UserError, did_you_mean

# The stem has as many channels as the first stage, so that its block needs no shortcut conv; from then on widths
# increase, so that every later one does. timm's BasicBlock and Detectron2's then agree part by part.
NARROW_WIDTHS = (24, 48, 96, 192)
NARROW_DEPTHS = (1, 1, 1, 1)

_TIMM = "timm/"
_KNOWN = f"torchvision's models, cifar_<a ResNet>, narrow_resnet, {_TIMM}<a model>"


def build_backbone(name: str, zero_init_residual: bool = False) -> Backbone:
    """A backbone with fresh random weights. ``zero_init_residual`` starts each residual branch at zero."""
    if name in BACKBONES:
        return Backbone(name, *BACKBONES.get(name)(zero_init_residual))
    theirs = name.removeprefix(_TIMM)
    # What stands behind a dot names weights of theirs.
    if theirs != name and timm.is_model(theirs) and ("." not in theirs or theirs in timm.list_pretrained()):
        return Backbone(name, *_timm_model(theirs, zero_init_residual))
    near = did_you_mean(name, [*BACKBONES, *(_TIMM + each for each in timm.list_models())])
    raise UserError(
        f"there is no backbone {name!r}{near} (known: {_KNOWN}; one of your own needs its module: --plugin MODULE)"
    )


def _timm_model(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    model: Any = timm.create_model(name, pretrained=False, num_classes=0)
    if isinstance(model, ResNet):  # timm's own default is to start at zero
        model = timm.create_model(name, pretrained=False, num_classes=0, zero_init_last=zero_init_residual)
    elif zero_init_residual:
        raise refuse_zero_init(name)
    return model, int(getattr(model, "head_hidden_size", model.num_features))


@BACKBONES.register("narrow_resnet")
def _narrow_resnet(zero_init_residual: bool) -> tuple[nn.Module, int]:
    """Stem 7x7 of stride 2 and a pool of stride 2, as in any four-stage ResNet; strides 4, 8, 16 and 32."""
    block: Any = BasicBlock  # timm's annotation says an instance and means the class
    model: Any = ResNet(  # timm's plain stem has 64 channels, always; a deep one is as wide as it is told
        *(block, NARROW_DEPTHS, 0),
        channels=NARROW_WIDTHS,
        zero_init_last=zero_init_residual,
        stem_type="deep",
        stem_width=NARROW_WIDTHS[0] // 2,
    )
    model.conv1 = stem_conv(NARROW_WIDTHS[0], kernel=7, stride=2)
    return model, NARROW_WIDTHS[-1]
