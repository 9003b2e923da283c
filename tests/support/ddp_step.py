"""A training step as SSQL makes it, for two processes: a file of its own, so that they can import it."""

import torch
from torch import nn

from ssql_det.core.distributed import rank
from ssql_det.quant import Bits, Quantization, Scheme
from support.networks import CifarResNet


class Step(nn.Module):
    """Float pass, ranges over the ranks, quantized pass: all in one ``forward``."""

    def __init__(self, scheme="minmax"):
        super().__init__()
        torch.manual_seed(0)
        self.net = CifarResNet().double().eval()
        self.quantization = Quantization(self.net, scheme=Scheme.parse(scheme))

    def forward(self, x):
        with self.quantization.observing():
            plain = self.net(x)
        with self.quantization.at(Bits(3, 4)):
            return plain, self.net(x)


def loss(plain, quantized_output):
    return plain.square().mean() + quantized_output.square().mean()


def run(images, directory, scheme):
    """Take every second image, calibrate, step under DDP, save what was observed, outputs and gradients."""
    step = Step(scheme)
    calibrated = Quantization(step.net, scheme=Scheme.parse(scheme))
    calibrated.calibrate(images[rank() :: 2].split(1))
    calibrated.save(directory / f"{rank()}.safetensors")
    parallel = nn.parallel.DistributedDataParallel(step)  # has to outlive backward
    outputs = parallel(images[rank() :: 2])
    loss(*outputs).backward()
    gradients = {name: parameter.grad for name, parameter in step.named_parameters()}
    torch.save(([output.detach() for output in outputs], gradients), directory / f"{rank()}.pt")
