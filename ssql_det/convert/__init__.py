"""Floor 1: checkpoints from anywhere to anywhere, exactly. All foreign files come in here.

A format is a file of :mod:`formats`: a rename table, what gives it away, what it does not carry. In the middle stands
the neutral form, torchvision's names and what is known about the network. Names are made from a ResNet's places, never
paired by position; every tensor is used, left out for a stated reason, or the file is refused.

>>> checkpoint = read_checkpoint("moco_v2_800ep_pretrain.pth.tar")
>>> write_checkpoint(checkpoint, "moco_v2.pkl", "detectron2")
>>> load_backbone(detector, checkpoint).percent
100.0
"""

from ssql_det.convert.architecture import ARCHITECTURES, Architecture, get_architecture
from ssql_det.convert.checkpoint import (
    CIFAR,
    IMAGENET,
    MSRA,
    Checkpoint,
    Coverage,
    InputFormat,
    Metadata,
    SourceFile,
    confirm_metadata,
)
from ssql_det.convert.files import (
    check_output,
    get_writers,
    inspect_checkpoint,
    read_checkpoint,
    read_content,
    write_checkpoint,
)
from ssql_det.convert.formats import FORMATS
from ssql_det.convert.formats.detectron2 import get_config_overrides
from ssql_det.convert.loading import identify_architecture, load_backbone, load_detector

__all__ = [
    "ARCHITECTURES",
    "CIFAR",
    "FORMATS",
    "IMAGENET",
    "MSRA",
    "Architecture",
    "Checkpoint",
    "Coverage",
    "InputFormat",
    "Metadata",
    "SourceFile",
    "check_output",
    "confirm_metadata",
    "get_architecture",
    "get_config_overrides",
    "get_writers",
    "identify_architecture",
    "inspect_checkpoint",
    "load_backbone",
    "load_detector",
    "read_checkpoint",
    "read_content",
    "write_checkpoint",
]
