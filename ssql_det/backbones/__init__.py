"""Floor 1: networks by name, with torchvision's names for their parts and a stated feature width."""

from ssql_det.backbones.build import Backbone, build_backbone

__all__ = ["Backbone", "build_backbone"]
