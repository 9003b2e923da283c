"""Calibrates on one rank's share of the images: a file of its own, so that processes can import it."""

import torch

from ssql_det.backbones import build_backbone
from ssql_det.core.distributed import is_main, rank, world_size
from ssql_det.quant import Quantization, Scheme


def calibrate_share(path):
    torch.manual_seed(0)
    model = build_backbone("narrow_resnet").module.eval()
    batches = torch.rand(4, 2, 3, 32, 32)
    quantization = Quantization(model, scheme=Scheme.parse("act=mse, equalize=yes"))
    quantization.calibrate([*batches[rank() :: world_size()]])
    if is_main():
        quantization.save(path)
