"""Floor 1: checkpoints from anywhere to anywhere, exactly. All foreign files come in here.

A format is a file of :mod:`formats`: a rename table, what gives it away, what it does not carry. In the middle stands
the neutral form, torchvision's names and what is known about the network. Names are made from a ResNet's places, never
paired by position; every tensor is used, left out for a stated reason, or the file is refused.

>>> checkpoint = read("moco_v2_800ep_pretrain.pth.tar")
>>> write(checkpoint, "moco_v2.pkl", "detectron2")
>>> load_backbone(detector, checkpoint).percent
100.0
"""

from ssql_det.convert.architecture import ARCHITECTURES, Architecture, architecture
from ssql_det.convert.checkpoint import CIFAR, IMAGENET, MSRA, Checkpoint, Coverage, Facts, Input, Source, told
from ssql_det.convert.files import check_output, examine, open_weights, read, write, writers
from ssql_det.convert.formats import FORMATS
from ssql_det.convert.formats.detectron2 import config_lines
from ssql_det.convert.loading import architecture_of, load_backbone, load_detector

__all__ = [
    "ARCHITECTURES",
    "CIFAR",
    "FORMATS",
    "IMAGENET",
    "MSRA",
    "Architecture",
    "Checkpoint",
    "Coverage",
    "Facts",
    "Input",
    "Source",
    "architecture",
    "architecture_of",
    "check_output",
    "config_lines",
    "examine",
    "load_backbone",
    "load_detector",
    "open_weights",
    "read",
    "told",
    "write",
    "writers",
]
