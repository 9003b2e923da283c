"""Inference as one graph of tensors, for one image of any size: a detector's, or a backbone's.

The networks (backbone, RPN head, box head, mask head) are the engine's own modules, so the detectors of both engines
become graphs in the same way. What lies between the networks (anchors, selecting proposals, ROIAlign, NMS) is that of
``selection.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.convert import InputFormat
from ssql_det.core.errors import UserError
from ssql_det.d2 import FastRCNNOutputLayers, GeneralizedRCNN, Res5ROIHeads, StandardROIHeads
from ssql_det.deploy.selection import Features, pool_regions, select_detections, select_proposals

_ARCHITECTURE_METHODS = ("forward", "inference", "preprocess_image")
_HEADS_METHODS: dict[type, Sequence[str]] = {
    Res5ROIHeads: ("forward", "forward_with_given_boxes", "_shared_roi_transform"),
    StandardROIHeads: ("forward", "forward_with_given_boxes", "_forward_box", "_forward_mask"),
}
_PREDICTOR_METHODS = ("forward", "inference", "predict_boxes", "predict_probs")
_DEFORMABLE = ("DeformConv", "ModulatedDeformConv")


class DetectorGraph(nn.Module):
    """Map an image, uint8 [height, width, 3] in the detector's channel order, to the detections in it.

    These are boxes [N, 4] in pixels of the image, scores [N] in descending order, class indices [N] and, if the
    detector predicts masks, probabilities [N, S, S] on the grid of each box. Raises a ``UserError`` for a detector with
    a part that this graph does not have.

    >>> from ssql_det.d2 import read_config
    >>> from ssql_det.detect import SSQL_DET_DEFAULTS
    >>> from ssql_det.detect.detector import build_detector
    >>> cfg = read_config("toy_voc_narrow_c4", ["MODEL.DEVICE", "cpu"], SSQL_DET_DEFAULTS)
    >>> graph = DetectorGraph(build_detector(cfg).eval())
    >>> boxes, scores, classes = graph(torch.zeros(120, 96, 3, dtype=torch.uint8))
    >>> boxes.shape == (len(scores), 4)
    True
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        check_supported(detector)
        self.detector: Any = detector

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs, in their order."""
        return ("boxes", "scores", "classes", "masks")[: 4 if self.detector.roi_heads.mask_on else 3]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        heads = _Heads.of(detector.roi_heads)
        x = normalize_image(image, detector.pixel_mean, detector.pixel_std)
        features = detector.backbone(pad_image(x, detector.backbone.size_divisibility))
        limits = _get_box_limits(image)
        regions = select_proposals(detector.proposal_generator, features, limits)
        logits, deltas = heads.predict_boxes(features, regions)
        boxes, scores, classes = select_detections(heads.predictor, regions, logits, deltas, limits)
        if heads.mask_network is None:
            return boxes, scores, classes
        return boxes, scores, classes, heads.predict_masks(features, boxes, classes)


class BackboneGraph(nn.Module):
    """Map an image, uint8 [height, width, 3] in the backbone's channel order, to the backbone's features."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, input_format: InputFormat) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(input_format.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(input_format.std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> Any:
        return self.backbone(normalize_image(image, self.mean, self.std)[None])


def check_supported(detector: nn.Module) -> None:
    """Raise a ``UserError`` that names the part of a detector that :class:`DetectorGraph` does not have."""
    if not isinstance(detector, GeneralizedRCNN) or _overrides(detector, GeneralizedRCNN, _ARCHITECTURE_METHODS):
        raise _unsupported("the architecture", detector, "MODEL.META_ARCHITECTURE")
    _check_backbone(detector.backbone)
    generator = detector.proposal_generator
    if type(generator).__name__ != "RPN":
        raise _unsupported("the proposal generator", generator, "MODEL.PROPOSAL_GENERATOR.NAME")
    anchors: Any = generator.anchor_generator
    if type(anchors).__name__ != "DefaultAnchorGenerator":
        raise _unsupported("the anchor generator", anchors, "MODEL.ANCHOR_GENERATOR.NAME")
    _check_heads(detector.roi_heads)


def _check_backbone(backbone: Any) -> None:
    if (getattr(backbone, "padding_constraints", None) or {}).get("square_size", 0) > 0:
        raise UserError("a backbone that pads images to squares cannot be exported; give it square_pad 0")
    for layer in backbone.modules():
        if type(layer).__name__ in _DEFORMABLE:
            raise _unsupported("the layer", layer, "MODEL.RESNETS.DEFORM_ON_PER_STAGE")


def _check_heads(heads: Any) -> None:
    base = next((each for each in _HEADS_METHODS if isinstance(heads, each)), None)
    if base is None or _overrides(heads, base, _HEADS_METHODS[base]):
        raise _unsupported("the ROI heads", heads, "MODEL.ROI_HEADS.NAME")
    if getattr(heads, "keypoint_on", False):
        raise UserError("keypoints cannot be exported; set MODEL.KEYPOINT_ON False to export boxes and masks")
    predictor = heads.box_predictor
    if not isinstance(predictor, FastRCNNOutputLayers) or _overrides(
        predictor, FastRCNNOutputLayers, _PREDICTOR_METHODS
    ):
        raise _unsupported("the box predictor", predictor)
    if len(predictor.box2box_transform.weights) != 4:
        raise _unsupported("the box regression", predictor.box2box_transform, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")
    if predictor.test_topk_per_image == 0:
        raise UserError("TEST.DETECTIONS_PER_IMAGE is 0, so that nothing is detected; set it to 1 or more, or -1")
    if heads.mask_on and not (hasattr(heads.mask_head, "layers") and hasattr(heads.mask_head, "predictor")):
        raise _unsupported("the mask head", heads.mask_head, "MODEL.ROI_MASK_HEAD.NAME")
    for head, pooler in zip(("BOX", "MASK"), _Heads.of(heads).poolers, strict=False):
        for each in getattr(pooler, "level_poolers", [pooler]):
            if type(each).__name__ != "ROIAlign":
                raise _unsupported("the pooler", each, f"MODEL.ROI_{head}_HEAD.POOLER_TYPE")


def _overrides(module: nn.Module, base: type, names: Sequence[str]) -> bool:
    """Whether the module's class has a method of its own where ``base`` has one, which the graph stands for."""
    return any(getattr(type(module), name) is not getattr(base, name) for name in names)


def _unsupported(part: str, found: object, key: str = "") -> UserError:
    return UserError(
        f"{part} {'none' if found is None else type(found).__name__}{f' ({key})' if key else ''} cannot be exported; "
        "supported are Faster and Mask R-CNN with RPN, ROIAlign, and the heads Res5ROIHeads, C4ROIHeads or "
        "StandardROIHeads"
    )


# ---- image -------------------------------------------------------------------------------------------------------


def normalize_image(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """From uint8 [height, width, 3] to float [3, height, width]."""
    return (image.permute(2, 0, 1).float() - mean) / std


def pad_image(image: Tensor, divisibility: int) -> Tensor:
    """A batch of one image, with zeros at the right and the bottom up to multiples of ``divisibility``."""
    if divisibility > 1:
        height, width = image.shape[1:]
        image = F.pad(image, (0, -width % divisibility, 0, -height % divisibility))
    return image[None]


def _get_box_limits(image: Tensor) -> Tensor:
    """The greatest x0, y0, x1, y1 of a box in the image."""
    height, width = (torch.scalar_tensor(side, dtype=torch.float32, device=image.device) for side in image.shape[:2])
    return torch.stack([width, height, width, height])


@dataclass(frozen=True)
class _Heads:
    """The ROI heads of an FPN or a C4 detector: which features are pooled, and what comes behind the pooling."""

    box_pooler: Any
    box_features: Sequence[str]
    box_network: Callable[[Tensor], Tensor]  # from pooled features to those of the predictor
    predictor: Any
    mask_pooler: Any = None
    mask_features: Sequence[str] = ()
    mask_network: Callable[[Tensor], Tensor] | None = None  # from pooled features to logits [N, classes or 1, S, S]

    @classmethod
    def of(cls, heads: Any) -> _Heads:
        if isinstance(heads, Res5ROIHeads):  # boxes and masks are predicted from res5 of the same pooler's features
            pooling = heads.pooler, heads.in_features
            boxes = cls(*pooling, lambda pooled: F.adaptive_avg_pool2d(heads.res5(pooled), 1), heads.box_predictor)
            masks = (*pooling, lambda pooled: heads.mask_head.layers(heads.res5(pooled))) if heads.mask_on else None
        else:
            boxes = cls(heads.box_pooler, heads.box_in_features, heads.box_head, heads.box_predictor)
            masks = (heads.mask_pooler, heads.mask_in_features, heads.mask_head.layers) if heads.mask_on else None
        if masks is None:
            return boxes
        return replace(boxes, mask_pooler=masks[0], mask_features=masks[1], mask_network=masks[2])

    @property
    def poolers(self) -> list[Any]:
        return [self.box_pooler] if self.mask_network is None else [self.box_pooler, self.mask_pooler]

    def predict_boxes(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [P, classes + 1] and deltas [P, 4 or classes * 4] of the regions, in their order.

        It is that of the engine, so that of several regions with the same score the same ones are suppressed.
        """
        order, pooled = pool_regions(self.box_pooler, [features[name] for name in self.box_features], regions)
        logits, deltas = self.predictor(self.box_network(pooled))
        if len(self.box_features) == 1:  # they are in their order
            return logits, deltas
        original = order.argsort()
        return logits[original], deltas[original]

    def predict_masks(self, features: Features, boxes: Tensor, classes: Tensor) -> Tensor:
        """The probabilities [N, S, S] of each box's class."""
        assert self.mask_network is not None
        order, pooled = pool_regions(self.mask_pooler, [features[name] for name in self.mask_features], boxes)
        logits = self.mask_network(pooled)
        if logits.shape[1] > 1:  # else the same for all classes
            chosen = classes[order].reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
            logits = logits.gather(1, chosen)
        return logits[:, 0].sigmoid()[order.argsort()]
