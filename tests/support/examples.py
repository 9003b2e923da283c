"""The names that examples in docstrings may use without making them: a small network, images, a data loader."""

import torch
from torch import nn

from ssql_det.backbones import build_backbone


def namespace():
    """Made anew for each example, so that none depends on another.

    ``model`` is a ResNet of 24 to 192 channels in evaluation mode.
    """
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    return {
        "images": images,
        "labels": torch.tensor([0, 1, 0, 1]),
        "loader": images.split(2),
        "model": build_backbone("narrow_resnet").module.eval(),
        "nn": nn,
        "seed": 0,
        "torch": torch,
    }
