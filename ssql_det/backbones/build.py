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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ssql_det.core.errors import UserError, did_you_mean, printable
from ssql_det.core.registry import Registry
from ssql_det.core.rng import seeded_rng

BACKBONES: Registry[Callable[[bool], tuple[nn.Module, int]]] = Registry("backbone")
"""Of ``zero_init_residual`` a builder makes a network with fresh weights, and the width of its features.

>>> @BACKBONES.register("my_net")
... def my_net(zero_init_residual: bool) -> tuple[nn.Module, int]:
...     return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8
"""

# The stem has as many channels as the first stage, so that its block needs no shortcut conv; from then on widths
# increase, so that every later one does. timm's BasicBlock and Detectron2's then agree part by part.
NARROW_WIDTHS = (24, 48, 96, 192)
NARROW_DEPTHS = (1, 1, 1, 1)

_TIMM = "timm/"
_KNOWN = f"torchvision's models, cifar_<a ResNet>, narrow_resnet, {_TIMM}<a model>"
_RESNETS = ("resnet", "resnext", "wide_resnet")
_AUXILIARY = ("googlenet", "inception_v3")  # in training they put out further classifiers' answers too
NOT_A_TENSOR = "no plain tensor"


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
            features = self.module.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError) as failure:
            reason = " ".join(str(failure).split())
            raise UserError(f"{self.name} cannot take images of {size} pixels: {printable(reason, 200)}") from failure
        finally:
            self.module.train(training)
        if (shape := list(getattr(features, "shape", ()))) != [1, self.width]:
            raise UserError(f"{self.name} puts out {shape} for one image, and its builder says [1, {self.width}]")


def build_backbone(name: str, zero_init_residual: bool = False) -> Backbone:
    """A backbone with fresh random weights. ``zero_init_residual`` starts each residual branch at zero."""
    if name in BACKBONES:
        return Backbone(name, *BACKBONES.get(name)(zero_init_residual))
    theirs = name.removeprefix(_TIMM)
    # What stands behind a dot names weights of theirs.
    if theirs != name and timm.is_model(theirs) and ("." not in theirs or theirs in timm.list_pretrained()):
        return Backbone(name, *_of_timm(theirs, zero_init_residual))
    near = did_you_mean(name, [*BACKBONES, *(_TIMM + each for each in timm.list_models())])
    raise UserError(
        f"there is no backbone {name!r}{near} (known: {_KNOWN}; one of your own needs its module: --plugin MODULE)"
    )


def _of_timm(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    model: Any = timm.create_model(name, pretrained=False, num_classes=0)
    if isinstance(model, ResNet):  # timm's own default is to start at zero
        model = timm.create_model(name, pretrained=False, num_classes=0, zero_init_last=zero_init_residual)
    elif zero_init_residual:
        raise _refuse_zero_init(name)
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
    model.conv1 = _stem_conv(NARROW_WIDTHS[0], kernel=7, stride=2)
    return model, NARROW_WIDTHS[-1]


def _of_torchvision(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    options = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    if name.startswith(_RESNETS):
        options = {"zero_init_residual": zero_init_residual}
    elif zero_init_residual:
        raise _refuse_zero_init(name)
    model = torchvision.models.get_model(name, weights=None, **options)
    return model, _remove_classifier(model)


def _cifar(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    model, width = _of_torchvision(name, zero_init_residual)
    model.conv1 = _stem_conv(64, kernel=3, stride=1)
    model.maxpool = nn.Identity()
    return model, width


def _stem_conv(width: int, kernel: int, stride: int) -> nn.Conv2d:
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


def _refuse_zero_init(name: str) -> UserError:
    return UserError(f"{name} has no residual branches that could start at zero; leave zero_init_residual off")


for _name in torchvision.models.list_models(torchvision.models):
    BACKBONES.register(_name)(partial(_of_torchvision, _name))
    if _name.startswith(_RESNETS):
        BACKBONES.register(f"cifar_{_name}")(partial(_cifar, _name))


def describe_state_dict(entries: Mapping[Any, Any]) -> dict[str, str]:
    """
    >>> describe_state_dict(nn.Linear(2, 1).state_dict())
    {'weight': 'float32 [1, 2]', 'bias': 'float32 [1]'}
    """
    return {str(name): _kind(value) for name, value in entries.items()}


def describe_expected_state(name: str) -> dict[str, str]:
    """That of a network which is built by name; without memory, where its code allows it."""
    with seeded_rng(name):  # the generators outside do not move
        try:
            with torch.device("meta"):
                return describe_state_dict(build_backbone(name).module.state_dict())
        except Exception:  # code that looks at values fails there, in any way
            return describe_state_dict(build_backbone(name).module.state_dict())


def find_state_differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Why the one state is not the other, a reason for each entry that is at fault."""
    kinds = {name: found.get(name, "missing") for name in wanted}
    wrong = [f"{name} is {kind}, not {wanted[name]}" for name, kind in kinds.items() if kind != wanted[name]]
    return wrong + [f"{name} has no place" for name in found if name not in wanted]


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor) or is_lazy(value):
        return NOT_A_TENSOR
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
