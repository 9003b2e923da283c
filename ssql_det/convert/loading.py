"""A checkpoint into a network, all of it or an error: ResNets of torchvision, timm and Detectron2, and its detectors.

The network is any module whose ``state_dict`` has a ResNet in one of these layouts: an FPN over it, C4 with its last
stage in the head, Detectron2's alone, torchvision's. Nothing of Detectron2 is imported here, so it is either engine's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ssql_det.convert.architecture import NUM_BATCHES_TRACKED, Architecture
from ssql_det.convert.checkpoint import Checkpoint, Coverage, summarize_names
from ssql_det.convert.format import Layout, best_fit, renamed
from ssql_det.convert.formats.detectron2 import DETECTRON2, get_config_overrides
from ssql_det.convert.formats.detectron2_detector import DETECTRON2_C4, DETECTRON2_FPN
from ssql_det.convert.formats.torchvision import TORCHVISION
from ssql_det.core.errors import UserError

_FORMATS = (DETECTRON2_FPN, DETECTRON2_C4, DETECTRON2, TORCHVISION)
_OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_head.")
_AS_NEAR = 0.01  # of values 0 to 255: people write means with one digit or with three


def load_backbone(model: nn.Module, checkpoint: Checkpoint) -> Coverage:
    """Give a network its backbone; what else it has (necks, heads, a norm after ``res5``) stays as it is.

    Refused, before anything is changed: another architecture, a tensor without its place on either side, a network
    that is fed other images than the backbone was trained on, or that strides elsewhere.

    >>> load_backbone(build_model(cfg), read_checkpoint("r50.pkl")).percent
    100.0
    """
    layout = _layout_of(model)
    given = renamed(checkpoint.tensors, checkpoint.architecture, layout)
    return _load(model, layout, checkpoint, given, set(_backbone_names(model, layout, checkpoint)))


def load_detector(model: nn.Module, checkpoint: Checkpoint) -> Coverage:
    """Give a detector all its tensors, from a file of a whole detector; refused as in :func:`load_backbone`.

    >>> load_detector(build_model(cfg), read_checkpoint("model_final_f10217.pkl")).percent
    100.0
    """
    layout = _layout_of(model)
    given = renamed(checkpoint.tensors, checkpoint.architecture, layout) | dict(checkpoint.detector)
    return _load(model, layout, checkpoint, given, set(model.state_dict()))


def identify_architecture(model: nn.Module) -> Architecture:
    """Which ResNet a network has, by its tensors; an error where it is none of those that are known.

    >>> architecture_of(build_model(cfg)).name
    'resnet18'
    """
    best = best_fit(_layout_of(model), {name: tensor.shape for name, tensor in model.state_dict().items()})
    if faults := [*best.wrong, *best.missing]:
        raise UserError(
            f"this network is near a {best.architecture.name} but for {summarize_names(faults)}; build a known ResNet"
        )
    return best.architecture


def _layout_of(model: nn.Module) -> Layout:
    state = model.state_dict()
    layouts = [layout for each in _FORMATS for layout in each.branches["online"]]
    layout = next((each for each in layouts if each.is_in(state, {})), None)
    if layout is None:
        known = ", ".join(each.first for each in layouts)
        raise UserError(f"this network has no ResNet where one is looked for ({known}); build it with another backbone")
    return layout


def _backbone_names(model: nn.Module, layout: Layout, checkpoint: Checkpoint) -> Iterator[str]:
    """The network's own tensors of stem and blocks, whatever its depth: a deeper one has more than are given."""
    names = layout.names
    roots = [f"{layout.prefix}{names.stem}.", f"{layout.prefix}{names.stem_norm}."]
    for stage in range(1, len(checkpoint.architecture.depths) + 1):
        of_stage = names.conv.split("{block}")[0].format(stage=stage - 1 + names.first_stage)
        prefix = layout.prefix if stage < 4 or layout.last_prefix is None else layout.last_prefix
        roots += [f"{prefix}{of_stage}{digit}" for digit in range(10)]
    yield from (name for name in model.state_dict() if name.startswith(tuple(roots)))


def _load(
    model: nn.Module, layout: Layout, checkpoint: Checkpoint, given: Mapping[str, Tensor], wanted: set[str]
) -> Coverage:
    state = model.state_dict()
    wrong = {
        name: f"is of shape {list(state[name].shape)}, in the checkpoint {list(tensor.shape)}"
        for name, tensor in given.items()
        if name in state and state[name].shape != tensor.shape
    }
    used = tuple(name for name in given if name in state and name not in wrong)
    missing = tuple(name for name in state if name in wanted - given.keys() and not name.endswith(NUM_BATCHES_TRACKED))
    homeless = [name for name in given if name not in state]
    left_out = {name: "FrozenBN has no place for it" for name in homeless if name.endswith(NUM_BATCHES_TRACKED)}
    left_out |= {name: "not of the backbone" for name in state if name not in given and name not in missing}
    unmatched = tuple(name for name in homeless if name not in left_out)
    coverage = Coverage(used, left_out, unmatched, missing, wrong)
    _check(coverage, checkpoint)
    _check_images(model, checkpoint)
    _check_stride(model, layout, checkpoint)
    with torch.no_grad():
        for name in used:
            state[name].copy_(given[name])
    return coverage


def _check(coverage: Coverage, checkpoint: Checkpoint) -> None:
    faults = [f"{name} {fault}" for name, fault in coverage.wrong.items()]
    faults += [f"{name} is not in the checkpoint" for name in coverage.missing]
    faults += [f"{name} is not in the network" for name in coverage.unmatched]
    if not faults:
        return
    hint = "build the network with the same depth"
    if any(fault.startswith("backbone.fpn_") for fault in faults):
        hint = "one of the two is a C4 detector, the other has an FPN; give the config that the file was trained with"
    elif all(fault.startswith(_OF_CLASSES) for fault in faults):
        hint = "give the config that the file was trained with: MODEL.ROI_HEADS.NUM_CLASSES, MODEL.MASK_ON, heads"
    elif not checkpoint.architecture.is_bottleneck and any("res5" in fault for fault in faults):
        hint += " and a C4 head with the same blocks (Detectron2's own Res5ROIHeads has bottlenecks at any depth)"
    name = checkpoint.architecture.name
    raise UserError(
        f"{checkpoint.display_name} is a {name} and does not fit this network: {summarize_names(faults)}; {hint}"
    )


def _check_images(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Images in another order, or normalized in another way, cost many AP and no error."""
    images = checkpoint.metadata.input
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if images is None or not isinstance(mean, Tensor) or not isinstance(std, Tensor):
        return
    ours, theirs = (*images.mean, *images.std), (*mean.flatten().tolist(), *std.flatten().tolist())
    same = len(ours) == len(theirs) and all(
        math.isclose(a, b, abs_tol=_AS_NEAR) for a, b in zip(ours, theirs, strict=True)
    )
    if not same or getattr(model, "input_format", images.channels) != images.channels:
        lines = " ".join(f"{key} {value}" for key, value in list(get_config_overrides(checkpoint).items())[:3])
        raise UserError(f"{checkpoint.display_name} was trained on other images than this network is fed; set {lines}")


def _check_stride(model: nn.Module, layout: Layout, checkpoint: Checkpoint) -> None:
    in_1x1 = checkpoint.metadata.stride_in_1x1
    if in_1x1 is None or not checkpoint.architecture.is_bottleneck:
        return
    slot = next(each for each in checkpoint.architecture.slots if (each.stage, each.conv) == (2, 1))
    first = model.get_submodule(str(layout(slot)).removesuffix(".weight"))
    if (getattr(first, "stride", (1, 1)) != (1, 1)) != in_1x1:
        raise UserError(
            f"{checkpoint.display_name} strides in its {'1x1' if in_1x1 else '3x3'} convs and this network does not; "
            f"set MODEL.RESNETS.STRIDE_IN_1X1 {in_1x1}"
        )
