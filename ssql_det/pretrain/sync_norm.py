"""BatchNorm over all processes, in one and two dimensions, on the CPU as well: N processes are one, number for number.

torch's own synchronized norm is for GPUs alone; there it is used.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssql_det.core.distributed import world_size


class SyncNorm(_BatchNorm):
    """BatchNorm of [N, C] or [N, C, H, W], whose N is that of all processes together.

    >>> SyncNorm(64)(torch.randn(8, 64, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected [N, C] or [N, C, H, W], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(input)
        work = input.to(torch.promote_types(input.dtype, torch.float32))
        over = [dim for dim in range(input.dim()) if dim != 1]
        count = work.new_tensor(float(input.numel() // input.shape[1]))
        dist.all_reduce(count)
        mean = differentiable_all_reduce(work.sum(over)) / count
        centred = work - _over_channels(mean, input)
        variance = differentiable_all_reduce(centred.square().sum(over)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * _over_channels(torch.rsqrt(variance + self.eps), input)
        if self.affine:
            out = out * _over_channels(self.weight, input) + _over_channels(self.bias, input)
        return out.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def synchronized(network: nn.Module) -> nn.Module:
    """The network with every BatchNorm in it over all processes; parameters and statistics stay the same tensors.

    >>> network = synchronized(network)
    """
    if any(parameter.is_cuda for parameter in network.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for path, norm in list(network.named_modules()):
        if isinstance(norm, _BatchNorm):
            above, _, name = path.rpartition(".")
            setattr(network.get_submodule(above), name, _twin(norm))
    return network


def _twin(norm: _BatchNorm) -> SyncNorm:
    twin = SyncNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin._parameters, twin._buffers = norm._parameters, norm._buffers
    return twin.train(norm.training)


def _over_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape([-1 if dim == 1 else 1 for dim in range(like.dim())])
