"""A training step as SSQL makes it, for two processes: a file of its own, so that they can import it."""

import torch
from networks import CifarResNet
from torch import nn

from ssql_det.core.ranks import rank
from ssql_det.quant import Bits, calibrate, observing, quant_points, quantized


class Step(nn.Module):
    """Float pass, ranges over the ranks, quantized pass: all in one ``forward``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = CifarResNet().double().eval()
        self.points = quant_points(self.net)

    def forward(self, x):
        with observing(self.net, self.points) as ranges:
            plain = self.net(x)
        ranges.all_reduce()
        with quantized(self.net, self.points, ranges, Bits(3, 4)):
            return plain, self.net(x)


def loss(plain, quantized_output):
    return plain.square().mean() + quantized_output.square().mean()


def run(images, directory):
    """Take every second image, calibrate, step under DDP, save ranges, outputs and gradients."""
    step = Step()
    calibrate(step.net, images[rank() :: 2].split(1), step.points).save(directory / f"{rank()}.json", step.net)
    parallel = nn.parallel.DistributedDataParallel(step)  # has to outlive backward
    outputs = parallel(images[rank() :: 2])
    loss(*outputs).backward()
    gradients = {name: parameter.grad for name, parameter in step.named_parameters()}
    torch.save(([output.detach() for output in outputs], gradients), directory / f"{rank()}.pt")
