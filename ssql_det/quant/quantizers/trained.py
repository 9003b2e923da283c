"""What quantizers with trained parameters share: a positive number for each bit-width, and where it starts.

Each bit-width has a parameter of its own. A step of training reaches only the bit-width that it uses: the parameters of
all others have no gradient, so momentum and weight decay leave them alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssql_det.quant.quantizers.quantizer import RangeQuantizer, TensorSpec

_LEAST_PART = 2.0**-10  # of the initial value


class TrainedRangeQuantizer(RangeQuantizer):
    """``trained`` has a number for each bit-width, which defines the range. It is initialized from the observations
    when its bit-width is first used; until then it is 0, and its ``initial`` value is NaN.

    In training the first pass alone is observed, so all bit-widths start from the same values, whenever they are first
    drawn. New observations, as of a calibration, make all start again. Loaded numbers are kept if the observer has, or
    then gets, the range that they were initialized from.
    """

    observes_once = True
    trains_each_width = True
    # Float64 holds what networks of float32 and of float64 train exactly.
    initial: Tensor
    observed_range: Tensor

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self.trained = make_parameters(self.supported_bits)
        self.register_buffer("initial", torch.full((len(self.supported_bits),), torch.nan, dtype=torch.float64))
        self.register_buffer("observed_range", torch.full((2,), torch.nan, dtype=torch.float64))
        self._observed: tuple[Tensor, Tensor] | None = None  # the same, by identity; None: not compared yet
        self._initialized: set[int] = set()  # bit-widths, known without reading from the GPU

    @abstractmethod
    def compute_initial(self, bits: int) -> Tensor:
        """Where the number of a bit-width starts."""

    def get_trained(self, bits: int) -> Tensor:
        """The number of a bit-width, above 0 unless its initial value is 0."""
        min_val, max_val = self.observer.range
        if self._observed is None or self._observed[0] is not min_val or self._observed[1] is not max_val:
            self._check_observations(min_val, max_val)
        index = bits - self.supported_bits.start
        if bits not in self._initialized:
            with torch.no_grad():
                self.trained[index].copy_(self.compute_initial(bits))
                self.initial[index].copy_(self.trained[index])
            self._initialized.add(bits)
        return keep_positive(self.trained[index], self.initial[index])

    @torch.no_grad()
    def _check_observations(self, min_val: Tensor, max_val: Tensor) -> None:
        """Start again, unless the numbers were loaded (or never used) and belong to this range."""
        current = torch.stack((min_val, max_val)).to(self.observed_range)
        if self._observed is not None or not torch.equal(current, self.observed_range):
            for parameter in self.trained:
                parameter.zero_()
            self.initial.fill_(torch.nan)
            self.observed_range.copy_(current)
        self._observed = min_val, max_val
        is_initialized = self.initial.isfinite().tolist()
        self._initialized = {bits for bits, each in zip(self.supported_bits, is_initialized, strict=True) if each}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        check_loaded_parameters(state_dict, prefix, self.spec.point.key)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._observed, self._initialized = None, set()


def make_parameters(bit_widths: range, shape: Sequence[int] = ()) -> nn.ParameterList:
    """A parameter of zeros for each bit-width; that of ``bits`` has the index ``bits - bit_widths.start``."""
    return nn.ParameterList(nn.Parameter(torch.zeros(tuple(shape), dtype=torch.float64)) for _ in bit_widths)


def check_loaded_parameters(state_dict: Mapping[str, Any], prefix: str, name: str) -> None:
    """Raise a ``ValueError`` if a file has trained parameters that are not finite."""
    for key, value in state_dict.items():
        if key.startswith(f"{prefix}trained.") and isinstance(value, Tensor) and not value.isfinite().all():
            raise ValueError(f"trained parameters of {name} are not finite")


def keep_positive(parameter: Tensor, initial: Tensor) -> Tensor:
    """The magnitude of a trained parameter, and at least 1/1024 of its initial value.

    The gradient is that of the magnitude also where this bound holds, so that the parameter can grow again. (To train
    the logarithm would need no bound, but published learning rates are those of the parameter itself.)

    >>> keep_positive(torch.tensor([0.5, -0.5, 0.0]), initial=torch.ones(3)) * 1024
    tensor([512., 512.,   1.])
    """
    positive: Tensor = _Magnitude.apply(parameter, initial * _LEAST_PART)
    return positive


def scale_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """Return ``x`` as it is; its gradient is multiplied by ``factor``."""
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


class _Magnitude(torch.autograd.Function):
    """``max(|parameter|, least)``, with the gradient of ``|parameter|``; that of 0 is 1."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, least: Tensor) -> Tensor:
        ctx.save_for_backward(parameter < 0)
        return torch.maximum(parameter.abs(), least)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (is_negative,) = ctx.saved_tensors
        return torch.where(is_negative, -grad, grad), None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.factor, None
