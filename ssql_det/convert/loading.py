"""Load a checkpoint into a network, all of it or none: ResNets of torchvision, timm and Detectron2, and its detectors.

The network is any module whose state dict has a ResNet in one of these layouts: below an FPN, C4 with the last stage in
its head, Detectron2's ResNet alone, torchvision's. Nothing of Detectron2 is imported, so this also works with minid2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ssql_det.convert.architecture import NUM_BATCHES_TRACKED, Architecture
from ssql_det.convert.checkpoint import Checkpoint, Coverage, summarize_names
from ssql_det.convert.format import Layout, find_architecture, rename_tensors
from ssql_det.convert.formats.detectron2 import DETECTRON2, get_config_overrides
from ssql_det.convert.formats.detectron2_detector import DETECTRON2_C4, DETECTRON2_FPN
from ssql_det.convert.formats.torchvision import TORCHVISION
from ssql_det.core.errors import UserError

_FORMATS = (DETECTRON2_FPN, DETECTRON2_C4, DETECTRON2, TORCHVISION)
_CLASS_DEPENDENT = ("roi_heads.box_predictor.", "roi_heads.mask_head.")  # prefixes
_TOLERANCE = 0.01  # of values 0 to 255: means are written with one digit or with three


def load_backbone(model: nn.Module, checkpoint: Checkpoint) -> Coverage:
    """Load a backbone into a network or a detector; other parts (necks, heads, a norm after ``res5``) are kept.

    It is an error, before anything is loaded, if the architecture differs, if a tensor is missing on either side, or
    if the network has another input format or stride than the backbone was trained with.

    >>> from ssql_det.backbones import build_backbone
    >>> from ssql_det.convert import get_architecture
    >>> checkpoint = Checkpoint(get_architecture("narrow_resnet"), model.state_dict())
    >>> load_backbone(build_backbone("narrow_resnet").module, checkpoint).percent
    100.0
    """
    layout = _find_layout(model)
    tensors = rename_tensors(checkpoint.tensors, checkpoint.architecture, layout)
    return _load(model, layout, checkpoint, tensors, set(_backbone_names(model, layout, checkpoint)))


def load_detector(model: nn.Module, checkpoint: Checkpoint) -> Coverage:
    """Load all tensors of a detector, from a file of a whole detector; errors are those of :func:`load_backbone`."""
    layout = _find_layout(model)
    tensors = rename_tensors(checkpoint.tensors, checkpoint.architecture, layout) | dict(checkpoint.detector)
    return _load(model, layout, checkpoint, tensors, set(model.state_dict()))


def identify_architecture(model: nn.Module) -> Architecture:
    """The known ResNet that a network has, by its tensors; an error if it has none.

    >>> identify_architecture(model).name
    'narrow_resnet'
    """
    best = find_architecture(_find_layout(model), {name: tensor.shape for name, tensor in model.state_dict().items()})
    if differences := [*best.mismatched, *best.missing]:
        raise UserError(
            f"this network is a {best.architecture.name} except for {summarize_names(differences)}; use a known ResNet"
        )
    return best.architecture


def _find_layout(model: nn.Module) -> Layout:
    state = model.state_dict()
    layouts = [layout for format in _FORMATS for layout in format.branches["online"]]
    layout = next((layout for layout in layouts if layout.matches(state, {})), None)
    if layout is None:
        keys = ", ".join(layout.stem_key for layout in layouts)
        raise UserError(f"this network has no known ResNet (none of {keys}); build it with another backbone")
    return layout


def _backbone_names(model: nn.Module, layout: Layout, checkpoint: Checkpoint) -> Iterator[str]:
    """The names of the network's stem and blocks, also of blocks that the checkpoint does not have."""
    names = layout.names
    prefixes = [f"{layout.prefix}{names.stem}.", f"{layout.prefix}{names.stem_norm}."]
    for stage in range(1, len(checkpoint.architecture.depths) + 1):
        stage_name = names.conv.split("{block}")[0].format(stage=stage - 1 + names.first_stage)
        is_moved = layout.last_stage_prefix is not None and stage == 4
        prefix = layout.last_stage_prefix if is_moved else layout.prefix
        prefixes += [f"{prefix}{stage_name}{digit}" for digit in range(10)]  # the first digit of a block's number
    yield from (name for name in model.state_dict() if name.startswith(tuple(prefixes)))


def _load(
    model: nn.Module, layout: Layout, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], required: set[str]
) -> Coverage:
    """``tensors``: to load, by the network's names. ``required``: the network's names that must be among them."""
    state = model.state_dict()
    invalid = {
        name: f"is of shape {list(state[name].shape)}, in the checkpoint {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in state and state[name].shape != tensor.shape
    }
    used = tuple(name for name in tensors if name in state and name not in invalid)
    required -= tensors.keys()
    missing = tuple(name for name in state if name in required and not name.endswith(NUM_BATCHES_TRACKED))
    not_in_network = [name for name in tensors if name not in state]
    left_out = {
        name: "FrozenBatchNorm2d has no such buffer" for name in not_in_network if name.endswith(NUM_BATCHES_TRACKED)
    }
    left_out |= {name: "not of the backbone" for name in state if name not in tensors and name not in missing}
    unmatched = tuple(name for name in not_in_network if name not in left_out)
    coverage = Coverage(used, left_out, unmatched, missing, invalid)
    _check_coverage(coverage, checkpoint)
    _check_input_format(model, checkpoint)
    _check_stride(model, layout, checkpoint)
    with torch.no_grad():
        for name in used:
            state[name].copy_(tensors[name])
    return coverage


def _check_coverage(coverage: Coverage, checkpoint: Checkpoint) -> None:
    faults = [f"{name} {fault}" for name, fault in coverage.invalid.items()]
    faults += [f"{name} is not in the checkpoint" for name in coverage.missing]
    faults += [f"{name} is not in the network" for name in coverage.unmatched]
    if not faults:
        return
    hint = "build the network with the same depth"
    if any(fault.startswith("backbone.fpn_") for fault in faults):
        hint = "one of the two is a C4 detector, the other has an FPN; use the config that the file was trained with"
    elif all(fault.startswith(_CLASS_DEPENDENT) for fault in faults):
        hint = "use the config that the file was trained with: MODEL.ROI_HEADS.NUM_CLASSES, MODEL.MASK_ON, heads"
    elif not checkpoint.architecture.is_bottleneck and any("res5" in fault for fault in faults):
        hint += " and a C4 head with the same blocks (Detectron2's own Res5ROIHeads has bottlenecks at any depth)"
    name = checkpoint.architecture.name
    raise UserError(
        f"{checkpoint.display_name} is a {name} and does not fit this network: {summarize_names(faults)}; {hint}"
    )


def _check_input_format(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Images in another channel order or normalization cost many AP without any error."""
    expected = checkpoint.metadata.input
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if expected is None or not isinstance(mean, Tensor) or not isinstance(std, Tensor):
        return
    expected_values, values = (*expected.mean, *expected.std), (*mean.flatten().tolist(), *std.flatten().tolist())
    is_same = len(expected_values) == len(values) and all(
        math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in zip(expected_values, values, strict=True)
    )
    if not is_same or getattr(model, "input_format", expected.channels) != expected.channels:
        overrides = " ".join(f"{key} {value}" for key, value in list(get_config_overrides(checkpoint).items())[:3])
        raise UserError(
            f"{checkpoint.display_name} was trained with another input format than this network has; set {overrides}"
        )


def _check_stride(model: nn.Module, layout: Layout, checkpoint: Checkpoint) -> None:
    stride_in_1x1 = checkpoint.metadata.stride_in_1x1
    if stride_in_1x1 is None or not checkpoint.architecture.is_bottleneck:
        return
    first_conv = next(spec for spec in checkpoint.architecture.tensors if (spec.stage, spec.conv) == (2, 1))
    layer = model.get_submodule(str(layout.get_name(first_conv)).removesuffix(".weight"))
    if (getattr(layer, "stride", (1, 1)) != (1, 1)) != stride_in_1x1:
        raise UserError(
            f"{checkpoint.display_name} has its strides in the {'1x1' if stride_in_1x1 else '3x3'} convs and this "
            f"network does not; set MODEL.RESNETS.STRIDE_IN_1X1 {stride_in_1x1}"
        )
