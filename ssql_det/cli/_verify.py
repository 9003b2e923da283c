"""``convert --verify``: load both files into networks and compare their features.

The network of each format is of the class that its users have: torchvision's, timm's or the engine's. Formats of other
libraries are loaded into torchvision's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql_det.core.errors import UserError
from ssql_det.core.files import temporary_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ssql_det.convert import Checkpoint

BAR = 1e-5  # of the largest feature of a stage
_STAGE_NAMES = (("layer1", "layer2", "layer3", "layer4"), ("res2", "res3", "res4", "res5"))
_ENGINE_FORMATS = ("detectron2", "detectron2-c4", "detectron2-fpn", "caffe2")


@contextmanager
def verified_output(checkpoint: Checkpoint, options: argparse.Namespace) -> Iterator[Path]:
    """A temporary path, which is moved to the output if the network written there computes the same features."""
    out = Path(options.out)
    with temporary_folder(out) as folder:
        path = folder / out.name
        yield path
        difference = compute_largest_difference(checkpoint, path, options.to)
        if not difference <= BAR:
            raise UserError(
                f"{out} was not written: the features of its network differ by {difference:.1e} of the largest from "
                f"those of {checkpoint.display_name}; please report this with the names of both formats"
            )
        os.replace(path, out)
    print(f"verified: features of all four stages differ by {difference:.1e} of the largest (bar {BAR:.0e})")


def compute_largest_difference(checkpoint: Checkpoint, path: Path, format: str) -> float:
    """Between the features of the checkpoint's network and of the one in ``path``, relative to a stage's largest.

    In float64, so that rounding does not count.
    """
    import torch

    from ssql_det.convert import IMAGENET, load_backbone, read_content
    from ssql_det.ssl.augmentations import normalize

    source_format = "" if checkpoint.source is None else checkpoint.source.format
    source = _build_network(source_format, checkpoint).double().eval()
    load_backbone(source, checkpoint)
    target = _build_network(format, checkpoint).double().eval()
    _load_by_own_names(target, format, read_content(path))
    source_input = checkpoint.metadata.input or IMAGENET
    keeps_channels = format in _ENGINE_FORMATS or format == "ssql_det" or source_input.channels == "RGB"
    target_input = source_input if keeps_channels else source_input.flip_channels()
    images = 255 * torch.rand(2, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = zip(
        _compute_features(source, normalize(images, source_input)),
        _compute_features(target, normalize(images, target_input)),
        strict=True,
    )
    return max(((one - other).abs().max() / one.abs().max()).item() for one, other in pairs)


def _build_network(format: str, checkpoint: Checkpoint) -> nn.Module:
    """A network with fresh weights, of the class that users of the format have."""
    from ssql_det.backbones import build_backbone

    architecture = checkpoint.architecture
    if format in _ENGINE_FORMATS:
        return _build_engine_resnet(checkpoint)
    if format == "timm" and not architecture.has_cifar_stem and architecture.name != "narrow_resnet":
        import timm

        return timm.create_model(architecture.name, num_classes=0)
    return build_backbone(architecture.name).module


def _build_engine_resnet(checkpoint: Checkpoint) -> nn.Module:
    from ssql_det import d2
    from ssql_det.convert import get_config_overrides

    overrides = {
        key: value for key, value in get_config_overrides(checkpoint).items() if key.startswith("MODEL.RESNETS.")
    }
    if checkpoint.architecture.name == "narrow_resnet":
        from ssql_det.detect.modeling import NARROW_BACKBONES

        overrides = {"MODEL.BACKBONE.NAME": NARROW_BACKBONES[0]}
    elif "MODEL.RESNETS.DEPTH" not in overrides:
        raise UserError(
            f"--verify cannot build a {checkpoint.architecture.name} of Detectron2's class; leave --verify out"
        )
    cfg = d2.get_cfg()
    for key, value in overrides.items():
        cfg.merge_from_list([key, bool(value) if value is None else value])
    cfg.MODEL.RESNETS.OUT_FEATURES = list(_STAGE_NAMES[1])
    return d2.build_backbone(cfg)


def _load_by_own_names(network: nn.Module, format: str, content: Any) -> None:
    """As the format's users do, with the class's own loading and none of the tables of ``ssql_det.convert``."""
    if format == "detectron2":
        from ssql_det.d2 import DetectionCheckpointer

        incompatible = DetectionCheckpointer(network)._load_model(
            {"model": dict(content["model"]), "matching_heuristics": True}
        )
        assert not incompatible.missing_keys, incompatible.missing_keys
        return
    container = {"ssql_det": "online", "safetensors": "model", "detectron2-c4": "model", "detectron2-fpn": "model"}
    state: Mapping[str, Tensor] = content[container[format]] if format in container else content
    for prefix in ("backbone.bottom_up.", "backbone.", "roi_heads."):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    names = network.state_dict()
    network.load_state_dict({name: tensor for name, tensor in state.items() if name in names})


def _compute_features(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of the four stages."""
    import torch

    from ssql_det.quant.hooks import recording_outputs

    stages = next(names for names in _STAGE_NAMES if hasattr(network, names[0]))
    with recording_outputs(network, stages) as features, torch.no_grad():
        network(images)
    return features
