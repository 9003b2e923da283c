"""A training step with switchable norms, for two processes: a file of its own, so that they can import it."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssql_det.core.distributed import average_gradients, rank, world_size
from ssql_det.quant import Bits, Quantization, Scheme
from support.networks import D2ResNet


def take_step(images):
    """The gradients of a network and of its norms for 2 and 3 bits, after a pass in float and one at 3 bits."""
    torch.manual_seed(0)
    model = D2ResNet().double().eval()
    quantization = Quantization(model, scheme=Scheme(norms="switchable"))
    norms = quantization.add_switchable_norms([2, 3])
    # The quantized pass, whose backward pass synchronizes the gradients, does not use the float norms.
    parallel = DistributedDataParallel(model, find_unused_parameters=True) if world_size() > 1 else model
    with quantization.observing(), nullcontext() if parallel is model else parallel.no_sync():
        parallel(images).square().mean().backward()
    with quantization.at(Bits(3, 4)):
        parallel(images).square().mean().backward()
    average_gradients(norms.parameters())
    return {name: parameter.grad for name, parameter in [*model.named_parameters(), *norms.named_parameters()]}


def average_one_gradient(given):
    """The average of a gradient that only rank ``given`` has."""
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3) if rank() == given else None
    average_gradients([parameter])
    return parameter.grad


def run(images, directory):
    torch.save((take_step(images[rank() :: 2]), average_one_gradient(1)), directory / f"{rank()}.pt")
