"""Switchable norms: a network has a set of norms for each bit-width of its weights (``norms=switchable``).

Quantized to few bits, a network's activations have other means and variances, so norms that serve several bit-widths
fit none. Slimmable networks (Yu et al., ICLR 2019) and AdaBits (Jin et al., CVPR 2020) therefore give each one norms of
its own, while all share the other weights: a few per mille of a network's size. The float network keeps its norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssql_det.core.errors import UserError
from ssql_det.quant.bits import Bits
from ssql_det.quant.repair import check_replaced_tensors

_TENSORS = ("weight", "bias", "running_mean", "running_var")
_NAME = re.compile(r"norms\.(\d{1,2})w/(.+)")  # of a tensor in a file


class SwitchableNorms(nn.Module):
    """Sets of gains, shifts and running statistics by weight bit-width, which start as copies of the network's norms.

    A set is trained by the passes at its bit-width; in the others its gradients are ``None``, so weight decay and
    momentum leave it alone. Sets are modules of the type BatchNorm, to which optimizers give the weight decay of norms.
    Frozen norms have gains and shifts in the sets, which are trained: they are frozen because the statistics of few
    images are poor. Their statistics stay shared.

    >>> norms = SwitchableNorms(model, [2, 4])
    >>> tensors = norms.get_tensors(2)  # by their names in the network
    >>> tensors["bn1.weight"].requires_grad, torch.equal(tensors["bn1.running_var"], model.bn1.running_var)
    (True, True)
    """

    def __init__(self, model: nn.Module, weight_bits: Iterable[int]) -> None:
        super().__init__()
        norms = dict(_find_norms(model))
        if not norms:
            raise UserError("norms=switchable: this network has no norm with statistics; use norms=trained")
        self.sets = nn.ModuleDict(
            {
                str(Bits(bits, None).weight): nn.ModuleDict({_module_name(path): _build(norms[path]) for path in norms})
                for bits in sorted({*weight_bits})
            }
        )
        self.start_from(model)

    @torch.no_grad()
    def start_from(self, model: nn.Module) -> None:
        """Make all sets copies of the network's norms."""
        for bits in self.weight_bits:
            for name, tensor in self.get_tensors(bits).items():
                path, _, attribute = name.rpartition(".")
                tensor.copy_(getattr(model.get_submodule(path), attribute))

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """The bit-widths that have a set."""
        return tuple(map(int, self.sets))

    def get_tensors(self, weight_bits: int) -> dict[str, Tensor]:
        """The set of a bit-width: tensors that replace the network's, by name."""
        norms = self.sets[str(weight_bits)]
        assert isinstance(norms, nn.ModuleDict)
        return {
            f"{key.replace('/', '.')}.{name}": tensor
            for key, norm in norms.items()
            for name in _TENSORS
            if (tensor := getattr(norm, name)) is not None
        }

    def collect_state(self) -> dict[str, Tensor]:
        """Tensors for a file: ``norms.4w/bn1.weight``."""
        return {
            f"norms.{bits}w/{name}": tensor.detach()
            for bits in self.weight_bits
            for name, tensor in self.get_tensors(bits).items()
        }

    @classmethod
    def restore(cls, state: Mapping[str, Tensor], model: nn.Module) -> SwitchableNorms:
        """Load what :meth:`collect_state` returned; a ``ValueError`` for tensors that do not fit the network."""
        sets: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            match = _NAME.fullmatch(name)
            if match is None:
                raise ValueError(f"unexpected tensor {name}")
            sets.setdefault(int(match[1]), {})[match[2]] = tensor
        norms = cls(model, sets)
        for bits, tensors in sets.items():
            check_replaced_tensors(model, tensors)
            own = norms.get_tensors(bits)
            if own.keys() != tensors.keys():
                raise ValueError(f"the norms of {bits} bits are not those of the network")
            for name, tensor in tensors.items():
                own[name].data.copy_(tensor)
        return norms


def _find_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            yield path, module


def _build(norm: nn.Module) -> nn.BatchNorm2d:
    """A BatchNorm that is never called: it holds tensors like a norm's, but no statistics if that is frozen."""
    module: Any = norm
    is_frozen, is_affine = not isinstance(norm, _BatchNorm), module.weight is not None
    holder = nn.BatchNorm2d(len(module.running_var), affine=is_affine, track_running_stats=not is_frozen)
    return holder.to(module.running_var)


def _module_name(path: str) -> str:
    """A path without dots, which torch does not allow in names of modules."""
    return path.replace(".", "/")
