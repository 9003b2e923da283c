"""Frozen batch norm, batch norm synchronized over processes, and ``get_norm``, which makes a norm by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn

from ..utils import comm
from .wrappers import BatchNorm2d

NormFactory = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine parameters, which are buffers; initially the identity."""

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would store tensors for gradients of the statistics, which are fixed.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * _over_channels(scale).to(x.dtype) + _over_channels(shift).to(x.dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        """Models from Caffe2 have no statistics: use those of the identity."""
        if (local_metadata.get("version") or 0) < 2:
            state_dict.setdefault(f"{prefix}running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(f"{prefix}running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every batch norm in a module, in place; for a batch norm itself return a new module."""
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, module.eps)
            for name, value in module.state_dict().items():
                setattr(frozen, name, value.clone())
            return frozen
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                module.add_module(name, converted)
        return module


class NaiveSyncBatchNorm(BatchNorm2d):
    """Batch norm with statistics averaged over all processes, on any backend.

    ``stats_mode=""`` gives every process the same weight; ``"N"`` weights by the number of images, which may be 0.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert stats_mode in ("", "N")
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        x = input.float() if input.dtype == torch.float16 else input
        mean, square, momentum = self._statistics(x)
        variance = square - mean * mean
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean += momentum * (mean.detach() - self.running_mean)
        self.running_var += momentum * (variance.detach() - self.running_var)
        return (x * _over_channels(scale) + _over_channels(shift)).to(input.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Mean and mean square over all processes, and the momentum of the running statistics."""
        images, channels = x.shape[:2]
        own = torch.cat([x.mean(dim=(0, 2, 3)), (x * x).mean(dim=(0, 2, 3))])
        if self._stats_mode == "":
            assert images > 0, 'without images there are no statistics: use stats_mode="N"'
            mean, square = (differentiable_all_reduce(own) / dist.get_world_size()).split(channels)
            return mean, square, self.momentum
        if images == 0:
            own = torch.zeros_like(own) + x.sum()  # keeps the gradient's graph connected
        total = differentiable_all_reduce(torch.cat([own * images, own.new_tensor([images])]))
        count = total[-1].detach()
        mean, square, _ = (total / count.clamp(min=1)).split(channels)
        return mean, square, count.clamp(max=1) * self.momentum  # 0 if there are no images


class LayerNorm(nn.Module):
    """Layer norm over the channels of [N, C, H, W]."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normalized = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * normalized + self.bias[:, None, None]


_NORMS: dict[str, NormFactory] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}


def get_norm(norm: str | NormFactory | None, out_channels: int) -> nn.Module | None:
    """The norm of this name, or the result of ``norm(out_channels)``; ``None`` for no name."""
    if norm is None or norm == "":
        return None
    return (_NORMS[norm] if isinstance(norm, str) else norm)(out_channels)


def _over_channels(values: Tensor) -> Tensor:
    return values.reshape(1, -1, 1, 1)
