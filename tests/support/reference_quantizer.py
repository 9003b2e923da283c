"""The published quantizer in plain torch operations, differentiable: what every quantized result is compared with."""

import torch


class Round(torch.autograd.Function):
    """Round with the gradient of the identity; exact, which ``x + (x.round() - x).detach()`` is not."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def clamp(x, low, high):
    """``torch.clamp`` with gradient 1 on the bounds too: since torch 2.14 its own gradient is 0 there."""
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))


def quantize_weight(weight, bits, axis=0):
    """Per output channel, symmetric, min-max."""
    dims = [dim for dim in range(weight.dim()) if dim != axis]
    scale = weight.abs().amax(dims, keepdim=True) / ((2**bits - 1) / 2)
    return clamp(Round.apply(weight / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def quantize_activation(x, low, high, bits):
    """Per tensor, asymmetric; the range is a constant unless it needs a gradient itself."""
    scale = (high - low) / (2**bits - 1)
    zero_point = -torch.round(low / scale).detach()
    return (clamp(Round.apply(x / scale) + zero_point, 0, 2**bits - 1) - zero_point) * scale


class RangeRecorder:
    """The smallest and largest value of each named activation in float passes."""

    def __init__(self):
        self.ranges = {}

    def __call__(self, name, x, bits=None):
        x_min, x_max = x.detach().min(), x.detach().max()
        low, high = self.ranges.get(name, (x_min, x_max))
        self.ranges[name] = (torch.minimum(low, x_min), torch.maximum(high, x_max))
        return x
