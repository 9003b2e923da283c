"""``--verify``: both networks, each in its own class with its own loading, have to see the same in the same images.

The classes are torchvision's, timm's and the engine's. A format whose class is not among them is taken in
torchvision's, whose names it has inside.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.backbones import build_backbone
from ssql_det.convert import IMAGENET, Checkpoint, load_backbone, read_content
from ssql_det.core.errors import UserError
from ssql_det.core.files import temporary_folder
from ssql_det.quant.hooks import recording_outputs
from ssql_det.ssl.augmentations import normalize

BAR = 1e-5  # of the largest feature of a stage
_STAGES = (("layer1", "layer2", "layer3", "layer4"), ("res2", "res3", "res4", "res5"))
_ENGINE = ("detectron2", "detectron2-c4", "detectron2-fpn", "caffe2")


@contextmanager
def verified(checkpoint: Checkpoint, options: argparse.Namespace) -> Iterator[Path]:
    """A place beside the output; what is written there becomes the output if its network is the same."""
    out = Path(options.out)
    with temporary_folder(out) as folder:
        unproven = folder / out.name
        yield unproven
        difference = largest_difference(checkpoint, unproven, options.to)
        if not difference <= BAR:
            raise UserError(
                f"{out} was not written: the features of its network differ by {difference:.1e} of their largest from "
                f"those of {checkpoint.display_name}; please report it, with both formats"
            )
        os.replace(unproven, out)
    print(f"verified: features of all four stages differ by {difference:.1e} of their largest (bar {BAR:.0e})")


def largest_difference(checkpoint: Checkpoint, path: Path, format: str) -> float:
    """Between the features of the network as it was read and as ``path`` has it, relative to a stage's largest.

    In float64: what is left is not rounding.
    """
    source_format = "" if checkpoint.source is None else checkpoint.source.format
    source = _built(source_format, checkpoint).double().eval()
    load_backbone(source, checkpoint)
    target = _built(format, checkpoint).double().eval()
    _load_as_its_users_do(target, format, read_content(path))
    images = checkpoint.metadata.input or IMAGENET
    theirs = images if format in _ENGINE or format == "ssql_det" or images.channels == "RGB" else images.flip_channels()
    pixels = 255 * torch.rand(2, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = zip(_features(source, normalize(pixels, images)), _features(target, normalize(pixels, theirs)), strict=True)
    return max(((one - other).abs().max() / one.abs().max()).item() for one, other in pairs)


def _built(format: str, checkpoint: Checkpoint) -> nn.Module:
    """An empty network of the class that a format's users have."""
    architecture = checkpoint.architecture
    if format in _ENGINE:
        return _engine_resnet(checkpoint)
    if format == "timm" and not architecture.is_cifar and architecture.name != "narrow_resnet":
        import timm

        return timm.create_model(architecture.name, num_classes=0)
    return build_backbone(architecture.name).module


def _engine_resnet(checkpoint: Checkpoint) -> nn.Module:
    from ssql_det import d2
    from ssql_det.convert import get_config_overrides

    lines = {key: value for key, value in get_config_overrides(checkpoint).items() if key.startswith("MODEL.RESNETS.")}
    if checkpoint.architecture.name == "narrow_resnet":
        from ssql_det.detect.modeling import NARROW_BACKBONES

        lines = {"MODEL.BACKBONE.NAME": NARROW_BACKBONES[0]}
    elif "MODEL.RESNETS.DEPTH" not in lines:
        raise UserError(f"--verify cannot build a {checkpoint.architecture.name} of Detectron2's class; leave it out")
    cfg = d2.get_cfg()
    for key, value in lines.items():
        cfg.merge_from_list([key, bool(value) if value is None else value])
    cfg.MODEL.RESNETS.OUT_FEATURES = list(_STAGES[1])
    return d2.build_backbone(cfg)


def _load_as_its_users_do(network: nn.Module, format: str, content: Any) -> None:
    """Without any table of this project: by the names in the file, through the class's own loading."""
    if format == "detectron2":
        from ssql_det.d2 import DetectionCheckpointer

        left = DetectionCheckpointer(network)._load_model(
            {"model": dict(content["model"]), "matching_heuristics": True}
        )
        assert not left.missing_keys, left.missing_keys
        return
    container = {"ssql_det": "online", "safetensors": "model", "detectron2-c4": "model", "detectron2-fpn": "model"}
    state: Mapping[str, Tensor] = content[container[format]] if format in container else content
    for prefix in ("backbone.bottom_up.", "backbone.", "roi_heads."):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    own = network.state_dict()
    network.load_state_dict({name: tensor for name, tensor in state.items() if name in own})


def _features(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What each of the four stages puts out."""
    stages = next(names for names in _STAGES if hasattr(network, names[0]))
    with recording_outputs(network, stages) as seen, torch.no_grad():
        network(images)
    return seen
