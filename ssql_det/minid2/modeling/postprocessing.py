"""Rescaling detections from the network's input size to the output size."""

from __future__ import annotations

from ..structures import Instances, ROIMasks


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale and clip boxes to the output size, drop empty ones, paste masks. May change ``results``."""
    height, width = results.image_size
    results = Instances((output_height, output_width), **results.get_fields())
    assert results.has("pred_boxes") or results.has("proposal_boxes"), "Predictions must contain boxes!"
    boxes = results.pred_boxes if results.has("pred_boxes") else results.proposal_boxes
    boxes.scale(output_width / width, output_height / height)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]
    if results.has("pred_masks"):
        masks = results.pred_masks
        masks = masks if isinstance(masks, ROIMasks) else ROIMasks(masks[:, 0])
        pasted = masks.to_bitmasks(results.pred_boxes, output_height, output_width, mask_threshold)
        results.pred_masks = pasted.tensor
    return results
