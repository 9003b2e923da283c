"""A quantizer from outside the package: a range of some standard deviations, with an observer and a collective's sums
of its own. And what runs in two processes with it."""

import torch

from ssql_det.core.distributed import rank
from ssql_det.quant import ACTIVATIONS, Quantization, RangeQuantizer, Scheme
from ssql_det.quant.quantizers import Observer

SCHEME = "act=sigmas:3"
IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Moments(Observer):
    """How many, their sum, the sum of their squares."""

    def update(self, x):
        if x.numel() == 0:
            return
        x = x.detach().double()
        self.extend_range(x.min().float(), x.max().float())
        self.sums = self.sums + torch.stack((torch.tensor(x.numel()).double(), x.sum(), x.square().sum()))

    def set_range(self, min_val, max_val):
        super().set_range(min_val, max_val)
        self.sums = torch.zeros(3, dtype=torch.float64) if self.sums is None else self.sums


@ACTIVATIONS.register("sigmas")
class Sigmas(RangeQuantizer):
    observer_class = Moments

    def __init__(self, spec, count=3.0):
        super().__init__(spec)
        self.count = count

    def choose_range(self, bits):
        number, total, squares = self.observer.sums
        mean, reach = total / number, self.count * (squares / number - (total / number) ** 2).clamp(min=0).sqrt()
        low, high = self.observer.range
        return torch.maximum(low, (mean - reach).float()), torch.minimum(high, (mean + reach).float())


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3) for _ in range(3))).eval()


def calibrated(images):
    quantization = Quantization(network(), scheme=Scheme.parse(SCHEME))
    quantization.calibrate(images)
    return quantization


def calibrate_share(directory):
    """Of two processes: each calibrates with every second image."""
    calibrated(IMAGES[rank() :: 2].split(1)).save(f"{directory}/{rank()}.safetensors")
