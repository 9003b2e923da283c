"""``lsq``: activations with a trained step for each bit-width, which starts from the range of ``mse``.

``x_q = (q - z) * s`` with ``q = clamp(round(x / s) + z, 0, qmax)`` and ``qmax = 2^b - 1``. The gradient of the step
``s`` is eq. 3 of the source with a zero point ``z``, times the source's factor ``1 / sqrt(number of elements * qmax)``:

=============================== ========================
where                           ``d x_q / d s``
=============================== ========================
``round(x / s) + z < 0``        ``-z``
in the range                    ``round(x / s) - x / s``
``round(x / s) + z > qmax``     ``qmax - z``
=============================== ========================

As everywhere in ``quant/affine.py`` (and in QDrop's code) the bounds are those of the rounded integer; the source
compares ``x / s`` with them before it is rounded. The zero point is not trained: 0 after a ReLU, and wherever else
``mse`` puts it.

Esser et al., "Learned step size quantization", ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssql_det.quant.affine import QParams, fake_quantize
from ssql_det.quant.quantizers.mse import MseActivation
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, QuantizedTensor, TensorSpec

_LEAST_PART = 2.0**-10  # of the initial step


@ACTIVATIONS.register("lsq")
class LsqActivation(MseActivation):
    """``steps`` are trained, one for each bit-width. A step is initialized when its bit-width is first used; until then
    it is 0, which weight decay and momentum leave alone, and its ``initial_steps`` is NaN.

    New observations make all steps be initialized again. Loaded steps are kept if the observer has, or then gets, the
    range that they were initialized from.

    A step that training has made smaller than 1/1024 of its initial value, or negative, counts as that small value, so
    the scale is always positive. Its gradient still flows, that of the absolute value, so that it can grow again. (To
    train the logarithm would need no bound, but the learning rates of the source are those of the step itself.)
    """

    name = "lsq"
    # Float64 holds the steps of float32 and of float64 networks exactly.
    initial_steps: Tensor
    zero_points: Tensor
    observed_range: Tensor

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec, exponent)
        zeros = torch.zeros(len(self.supported_bits), dtype=torch.float64)
        self.steps = nn.Parameter(zeros.clone())
        self.register_buffer("initial_steps", torch.full_like(zeros, torch.nan))
        self.register_buffer("zero_points", zeros.clone())
        self.register_buffer("observed_range", torch.full_like(zeros[:2], torch.nan))  # when the steps were initialized
        self._observed: tuple[Tensor, Tensor] | None = None  # the same, by identity; None: not compared yet
        self._initialized: set[int] = set()  # bit-widths, known without reading from the GPU

    def forward(self, x: Tensor, bits: int) -> Tensor:
        if x.numel() == 0:
            return x
        qparams = self.get_qparams(bits)
        factor = 1 / math.sqrt(x.numel() * qparams.qmax)
        scale: Tensor = _ScaleGradient.apply(qparams.scale, factor)
        return fake_quantize(x, replace(qparams, scale=scale))

    @torch.no_grad()
    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        return super().quantize(x, bits)

    def _compute_qparams(self, bits: int) -> QParams:
        min_val, max_val = self.observer.range
        if self._observed is None or self._observed[0] is not min_val or self._observed[1] is not max_val:
            self._check_observations(min_val, max_val)
        index = bits - self.supported_bits.start
        if bits not in self._initialized:
            self._initialize(index, bits)
        step: Tensor = _PositiveStep.apply(self.steps[index], self.initial_steps[index] * _LEAST_PART)
        # A copy: a graph that saved it may be differentiated after another bit-width was initialized.
        zero_point = self.zero_points[index].to(min_val.dtype, copy=True)
        return QParams(step.to(min_val.dtype), zero_point, 0, 2**bits - 1)

    @torch.no_grad()
    def _check_observations(self, min_val: Tensor, max_val: Tensor) -> None:
        """Reset the steps, unless they were loaded (or never used) and belong to this range."""
        current = torch.stack((min_val, max_val)).to(self.observed_range)
        if self._observed is not None or not torch.equal(current, self.observed_range):
            self.steps.zero_()
            self.zero_points.zero_()
            self.initial_steps.fill_(torch.nan)
            self.observed_range.copy_(current)
        self._observed = min_val, max_val
        is_initialized = self.initial_steps.isfinite().tolist()
        self._initialized = {bits for bits, each in zip(self.supported_bits, is_initialized, strict=True) if each}

    @torch.no_grad()
    def _initialize(self, index: int, bits: int) -> None:
        qparams = super()._compute_qparams(bits)
        for tensor, value in (
            (self.steps, qparams.scale),
            (self.initial_steps, qparams.scale),
            (self.zero_points, qparams.zero_point),
        ):
            tensor[index].copy_(value)
        self._initialized.add(bits)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in ("steps", "zero_points"):
            loaded = state_dict.get(prefix + name)
            if isinstance(loaded, Tensor) and not loaded.isfinite().all():
                raise ValueError(f"{name} of {self.spec.point.key} are not finite")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._observed, self._initialized = None, set()


class _PositiveStep(torch.autograd.Function):
    """``max(|step|, least)``, with the gradient of ``|step|``; that of a step of 0 is 1."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, least: Tensor) -> Tensor:
        ctx.save_for_backward(step < 0)
        return torch.maximum(step.abs(), least)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (is_negative,) = ctx.saved_tensors
        return torch.where(is_negative, -grad, grad), None


class _ScaleGradient(torch.autograd.Function):
    """Return ``x`` as it is; its gradient is multiplied by ``factor``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.factor, None
