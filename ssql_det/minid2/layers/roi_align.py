"""ROIAlign as a module."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """Resample the features within boxes to ``output_size``; boxes are first multiplied by ``spatial_scale``.

    ``sampling_ratio=0`` adapts the number of samples to the box size; ``aligned`` places pixels at their centres.
    """

    def __init__(
        self, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """``input`` [N, C, H, W] and ``rois`` [R, 5] (image index, x0, y0, x1, y1) to [R, C, *output_size]."""
        assert rois.dim() == 2, rois.shape
        assert rois.size(1) == 5, rois.shape
        size, scale, ratio = self.output_size, self.spatial_scale, self.sampling_ratio
        aligned: Tensor = roi_align(input, rois.to(input.dtype), size, scale, ratio, self.aligned)
        return aligned

    def extra_repr(self) -> str:
        names = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
