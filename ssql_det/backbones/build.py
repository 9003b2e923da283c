"""Build a backbone by name, and compare its state dict with a checkpoint's.

===================  =======================================================================================
``resnet50``         any classification model of torchvision: ``mobilenet_v2``, ``regnet_y_400mf``, ``vit_b_16``
``cifar_resnet18``   a ResNet with a 3x3 stem of stride 1 and no pooling, for images of 32 pixels
``narrow_resnet``    four stages of one BasicBlock with 24 to 192 channels, for machines without a GPU
``timm/<name>``      any model of timm
``my_net``           a network that a plugin has registered in ``BACKBONES``
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
"""A builder takes ``zero_init_residual`` and returns a network with fresh weights, and the dimension of its features::

    @BACKBONES.register("my_net")
    def build_my_net(zero_init_residual: bool) -> tuple[nn.Module, int]:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8
"""

# The stem is as wide as the first stage, whose block so has no shortcut conv, and every later stage is wider, so that
# its block has one: then timm's BasicBlocks and Detectron2's have the same layers.
NARROW_WIDTHS = (24, 48, 96, 192)
NARROW_DEPTHS = (1, 1, 1, 1)

_TIMM_PREFIX = "timm/"
_KNOWN_NAMES = f"torchvision's models, cifar_<a ResNet>, narrow_resnet, {_TIMM_PREFIX}<a model>"
_RESNET_PREFIXES = ("resnet", "resnext", "wide_resnet")
_WITH_AUXILIARY_CLASSIFIERS = ("googlenet", "inception_v3")  # whose logits they return too in training mode
NOT_A_TENSOR = "no plain tensor"  # where a state dict has an extra state or a lazy parameter


@dataclass(frozen=True)
class Backbone:
    """A network that maps images [N, 3, H, W] to features [N, feature_dim].

    >>> backbone = build_backbone("resnet18")
    >>> backbone.feature_dim, backbone.module(torch.zeros(2, 3, 64, 64)).shape
    (512, torch.Size([2, 512]))
    """

    name: str
    module: nn.Module
    feature_dim: int

    @torch.no_grad()
    def require_size(self, size: int) -> None:
        """An error unless the network takes images of this size: some take only one."""
        was_training = self.module.training
        try:
            features = self.module.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError) as failure:
            reason = " ".join(str(failure).split())
            raise UserError(f"{self.name} cannot take images of {size} pixels: {printable(reason, 200)}") from failure
        finally:
            self.module.train(was_training)
        if (shape := list(getattr(features, "shape", ()))) != [1, self.feature_dim]:
            raise UserError(
                f"{self.name} returns features of shape {shape} for one image; its builder says [1, {self.feature_dim}]"
            )


def build_backbone(name: str, zero_init_residual: bool = False) -> Backbone:
    """A backbone with random weights. With ``zero_init_residual`` each residual branch starts at zero.

    >>> build_backbone("timm/resnet18", zero_init_residual=True).module.layer1[0].bn2.weight.sum().item()
    0.0
    """
    if name in BACKBONES:
        return Backbone(name, *BACKBONES.get(name)(zero_init_residual))
    timm_name = name.removeprefix(_TIMM_PREFIX)
    # timm ignores an unknown tag of pretrained weights, the part after the dot.
    is_valid = "." not in timm_name or timm_name in timm.list_pretrained()
    if timm_name != name and timm.is_model(timm_name) and is_valid:
        return Backbone(name, *_build_timm(timm_name, zero_init_residual))
    hint = did_you_mean(name, [*BACKBONES, *(_TIMM_PREFIX + each for each in timm.list_models())])
    raise UserError(
        f"there is no backbone {name!r}{hint} (known: {_KNOWN_NAMES}; load one of your own with --plugin MODULE)"
    )


def _build_timm(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    model: Any = timm.create_model(name, pretrained=False, num_classes=0)
    if isinstance(model, ResNet):  # timm's own default is zero_init_last=True
        model = timm.create_model(name, pretrained=False, num_classes=0, zero_init_last=zero_init_residual)
    elif zero_init_residual:
        raise _zero_init_error(name)
    return model, int(getattr(model, "head_hidden_size", model.num_features))


@BACKBONES.register("narrow_resnet")
def _build_narrow_resnet(zero_init_residual: bool) -> tuple[nn.Module, int]:
    """A 7x7 stem of stride 2 and a pool of stride 2, as in any four-stage ResNet; strides 4, 8, 16 and 32."""
    block: Any = BasicBlock  # timm annotates an instance and means the class
    model: Any = ResNet(  # timm's plain stem always has 64 channels; a deep stem has a width, and its conv is replaced
        *(block, NARROW_DEPTHS, 0),
        channels=NARROW_WIDTHS,
        zero_init_last=zero_init_residual,
        stem_type="deep",
        stem_width=NARROW_WIDTHS[0] // 2,
    )
    model.conv1 = _make_stem_conv(NARROW_WIDTHS[0], kernel=7, stride=2)
    return model, NARROW_WIDTHS[-1]


def _build_torchvision(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    options = {"aux_logits": False, "init_weights": True} if name in _WITH_AUXILIARY_CLASSIFIERS else {}
    if name.startswith(_RESNET_PREFIXES):
        options = {"zero_init_residual": zero_init_residual}
    elif zero_init_residual:
        raise _zero_init_error(name)
    model = torchvision.models.get_model(name, weights=None, **options)
    return model, _remove_classifier(model)


def _build_cifar_resnet(name: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
    """The weights of convs start as torch's default, as in the published code, not as torchvision's ResNets do."""
    model, width = _build_torchvision(name, zero_init_residual)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return model, width


def _make_stem_conv(width: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _remove_classifier(model: nn.Module) -> int:
    """Replace the last layer, and a dropout right before it, by identities; return the width of the features.

    SqueezeNet's last layer is a conv.
    """
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    path, classifier = layers[-1]
    parent_path, _, name = path.rpartition(".")
    parent: Any = model.get_submodule(parent_path)
    names = [child for child, _ in parent.named_children()]
    previous = names[names.index(name) - 1]
    setattr(parent, name, nn.Identity())
    if isinstance(getattr(parent, previous), nn.Dropout):
        setattr(parent, previous, nn.Identity())
    return classifier.in_features if isinstance(classifier, nn.Linear) else classifier.in_channels


def _zero_init_error(name: str) -> UserError:
    return UserError(f"{name} has no residual branches that could start at zero; set zero_init_residual to False")


for _name in torchvision.models.list_models(torchvision.models):
    BACKBONES.register(_name)(partial(_build_torchvision, _name))
    if _name.startswith(_RESNET_PREFIXES):
        BACKBONES.register(f"cifar_{_name}")(partial(_build_cifar_resnet, _name))


def describe_state_dict(state: Mapping[Any, Any]) -> dict[str, str]:
    """The type and shape of each entry.

    >>> describe_state_dict(nn.Linear(2, 1).state_dict())
    {'weight': 'float32 [1, 2]', 'bias': 'float32 [1]'}
    """
    return {str(name): _describe_entry(value) for name, value in state.items()}


def describe_expected_state(name: str) -> dict[str, str]:
    """:func:`describe_state_dict` of the backbone of this name, built on the meta device if its code allows that.

    >>> describe_expected_state("resnet18")["conv1.weight"]
    'float32 [64, 3, 7, 7]'
    """
    with seeded_rng(name):  # leaves the global generators as they are
        try:
            with torch.device("meta"):
                return describe_state_dict(build_backbone(name).module.state_dict())
        except Exception:  # code that reads values of tensors fails there, in any way
            return describe_state_dict(build_backbone(name).module.state_dict())


def find_state_differences(state: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What is wrong with a state dict, given by :func:`describe_state_dict`.

    >>> find_state_differences({"weight": "int64 [3]"}, {"weight": "float32 [3]", "bias": "float32 [3]"})
    ['weight is int64 [3], not float32 [3]', 'bias is missing, not float32 [3]']
    """
    entries = {name: state.get(name, "missing") for name in expected}
    wrong = [f"{name} is {entry}, not {expected[name]}" for name, entry in entries.items() if entry != expected[name]]
    return wrong + [f"{name} is unexpected" for name in state if name not in expected]


def _describe_entry(value: Any) -> str:
    if not isinstance(value, Tensor) or is_lazy(value):
        return NOT_A_TENSOR
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
