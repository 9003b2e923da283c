"""Read and write ResNet backbones in many libraries' checkpoint formats, and load them into networks.

architecture  ResNets as lists of tensors
metadata      input format, stride, method: what the tensors do not say
checkpoint    a backbone that was read, and the coverage of its file
format        what a format is; each file of ``formats`` describes one
io            from a file, to a file
loading       into a network: torchvision's, timm's, Detectron2's, or a detector

>>> from ssql_det.backbones import build_backbone
>>> torch.save(model.state_dict(), "backbone.pth")
>>> checkpoint = read_checkpoint("backbone.pth")
>>> checkpoint.source.format, checkpoint.architecture.name
('torchvision', 'narrow_resnet')
>>> load_backbone(build_backbone("narrow_resnet").module, checkpoint).percent
100.0
"""

from ssql_det.convert.architecture import ARCHITECTURES, Architecture, get_architecture
from ssql_det.convert.checkpoint import Checkpoint, Coverage, SourceFile
from ssql_det.convert.formats import FORMATS
from ssql_det.convert.formats.detectron2 import get_config_overrides
from ssql_det.convert.io import (
    check_output,
    get_writers,
    inspect_checkpoint,
    read_checkpoint,
    read_content,
    write_checkpoint,
)
from ssql_det.convert.loading import identify_architecture, load_backbone, load_detector
from ssql_det.convert.metadata import CIFAR, IMAGENET, MSRA, InputFormat, Metadata, with_known_input

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
    "get_architecture",
    "get_config_overrides",
    "get_writers",
    "identify_architecture",
    "inspect_checkpoint",
    "load_backbone",
    "load_detector",
    "read_checkpoint",
    "read_content",
    "with_known_input",
    "write_checkpoint",
]
