"""Synchronized BatchNorm1d and BatchNorm2d on the CPU; torch's own ``SyncBatchNorm`` is for GPUs only.

Several processes compute the same as one process with all their images.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssql_det.core.distributed import world_size


class CPUSyncBatchNorm(_BatchNorm):
    """BatchNorm of [N, C] or [N, C, H, W] with batch statistics over all processes.

    >>> CPUSyncBatchNorm(64)(torch.randn(8, 64, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected [N, C] or [N, C, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [dim for dim in range(input.dim()) if dim != 1]
        count = x.new_tensor(float(input.numel() // input.shape[1]))
        dist.all_reduce(count)
        mean = differentiable_all_reduce(x.sum(dims)) / count
        centred = x - _per_channel(mean, input)
        variance = differentiable_all_reduce(centred.square().sum(dims)) / count
        self._update_running_statistics(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * _per_channel(torch.rsqrt(variance + self.eps), input)
        if self.affine:
            out = out * _per_channel(self.weight, input) + _per_channel(self.bias, input)
        return out.to(input.dtype)

    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def convert_sync_batchnorm(network: nn.Module) -> nn.Module:
    """Replace every BatchNorm by a synchronized BatchNorm, on any device, with the same parameters and buffers.

    >>> convert_sync_batchnorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1]
    CPUSyncBatchNorm(3, ...)
    """
    if any(parameter.is_cuda for parameter in network.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for path, norm in list(network.named_modules()):
        if isinstance(norm, _BatchNorm):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, _convert(norm))
    return network


def _convert(norm: _BatchNorm) -> CPUSyncBatchNorm:
    converted = CPUSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    converted._parameters, converted._buffers = norm._parameters, norm._buffers
    return converted.train(norm.training)


def _per_channel(values: Tensor, input: Tensor) -> Tensor:
    """Reshape values [C] so that they broadcast over ``input``."""
    return values.reshape([-1 if dim == 1 else 1 for dim in range(input.dim())])
