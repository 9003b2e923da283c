"""A training step of a norm in each of two processes, in a separate file, which the processes can import."""

import importlib

import torch
from support.minid2.modules import seed_weights

from ssql_det.core.distributed import rank


def step(norm, images, direction):
    """What comes out, what flows back along a direction, and the statistics that stay."""
    images = images.clone().requires_grad_()
    out = seed_weights(norm).train()(images)
    out.backward(direction)
    answers = {"out": out.detach(), "input": images.grad, "mean": norm.running_mean, "variance": norm.running_var}
    return answers | {name: parameter.grad for name, parameter in norm.named_parameters()}


def run(root, cases, directory):
    """This rank's share of every case (a norm's name, images of each rank, directions of each rank)."""
    layers = importlib.import_module(f"{root}.layers")
    answers = {
        name: step(layers.get_norm(norm, images[0].shape[1]), images[rank()], directions[rank()])
        for name, (norm, images, directions) in cases.items()
    }
    torch.save(answers, directory / f"{rank()}.pt")
