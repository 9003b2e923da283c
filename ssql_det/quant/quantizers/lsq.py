"""``lsq``: weights and activations with a trained step for each bit-width.

``x_q = (q - z) * s`` with ``q = clamp(round(x / s) + z, qmin, qmax)``. An activation has ``qmin = 0`` and
``qmax = 2^b - 1``; a weight has ``qmin = -2^(b-1)``, ``qmax = 2^(b-1) - 1`` and ``z = 0``. The gradient of the step
``s`` is eq. 3 of the source with a zero point ``z``:

=============================== ========================
where                           ``d x_q / d s``
=============================== ========================
``round(x / s) + z < qmin``     ``qmin - z``
in the range                    ``round(x / s) - x / s``
``round(x / s) + z > qmax``     ``qmax - z``
=============================== ========================

It is multiplied by the source's factor ``1 / sqrt(N * qmax)``. ``N`` counts the elements of a weight that share the
step, and the elements of an activation that were observed when the step started, by all processes: a constant, although
sizes of images vary.

As everywhere in ``quant/affine.py`` (and in QDrop's code) the bounds are those of the rounded integer; the source
compares ``x / s`` with them before it is rounded.

============ ============================== ===========================================================
differences  here                           in the source
============ ============================== ===========================================================
weight       a step per output channel      a step per layer; both start at ``2 * mean|w| / sqrt(qmax)``
activation   starts at the range of ``mse`` starts at ``2 * mean|x| / sqrt(qmax)``
zero point   0 after a ReLU, else that of   always 0
             ``mse``; not trained
============ ============================== ===========================================================

Esser et al., "Learned step size quantization", ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssql_det.quant.affine import QParams, compute_dtype, fake_quantize
from ssql_det.quant.quantizers.mse import MseActivation, check_exponent, search_range
from ssql_det.quant.quantizers.observers import Histogram
from ssql_det.quant.quantizers.quantizer import (
    ACTIVATIONS,
    WEIGHTS,
    QuantizedTensor,
    Quantizer,
    TensorSpec,
    quantize_tensor,
)
from ssql_det.quant.quantizers.trained import (
    TrainedRangeQuantizer,
    check_loaded_parameters,
    keep_positive,
    make_parameters,
    scale_gradient,
)


@ACTIVATIONS.register("lsq")
class LsqActivation(TrainedRangeQuantizer):
    """Per tensor; the numbers in ``trained`` are steps."""

    observer_class = Histogram
    observer: Histogram
    supported_bits = MseActivation.supported_bits
    zero_points: Tensor

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec)
        self._exponent = check_exponent(exponent, "lsq")
        self.register_buffer("zero_points", torch.zeros(len(self.supported_bits), dtype=torch.float64))

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        return search_range(self.observer, bits, self._exponent)

    def compute_initial(self, bits: int) -> Tensor:
        qparams = super()._compute_qparams(bits)
        self.zero_points[bits - self.supported_bits.start].copy_(qparams.zero_point)
        return qparams.scale

    def forward(self, x: Tensor, bits: int) -> Tensor:
        if x.numel() == 0:
            return x
        qparams = self.get_qparams(bits)
        assert self.observer.sums is not None
        factor = (self.observer.sums.sum().double() * qparams.qmax).rsqrt()
        return fake_quantize(x, replace(qparams, scale=scale_gradient(qparams.scale, factor.to(qparams.scale))))

    @torch.no_grad()
    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        return super().quantize(x, bits)

    def _compute_qparams(self, bits: int) -> QParams:
        step, dtype = self.get_trained(bits), self.observer.range[0].dtype
        # A copy: a graph that saved it may be differentiated after another bit-width was initialized.
        zero_point = self.zero_points[bits - self.supported_bits.start].to(dtype, copy=True)
        return QParams(step.to(dtype), zero_point, 0, 2**bits - 1)


@WEIGHTS.register("lsq")
class LsqWeight(Quantizer):
    """Per output channel; ``trained`` has the steps. Those of all bit-widths start from the first weight that is
    quantized: ``mean_abs`` is the mean magnitude of each of its channels, and NaN before."""

    trains_each_width = True
    supported_bits = range(2, 9)  # each has a step per channel, which is not worth its memory at more bits
    mean_abs: Tensor

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        assert spec.shape is not None
        axis = spec.axis % len(spec.shape)
        shape = [size if dim == axis else 1 for dim, size in enumerate(spec.shape)]
        self.trained = make_parameters(self.supported_bits, shape)
        self.register_buffer("mean_abs", torch.full(shape, torch.nan, dtype=torch.float64))
        self._is_started: bool | None = None  # None: not read from ``mean_abs`` yet

    def forward(self, x: Tensor, bits: int) -> Tensor:
        qparams = self._get_qparams(x, bits)
        elements_per_step = x.numel() // self.mean_abs.numel()
        factor = 1 / math.sqrt(elements_per_step * qparams.qmax)
        return fake_quantize(x, replace(qparams, scale=scale_gradient(qparams.scale, factor)))

    @torch.no_grad()
    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor:
        return quantize_tensor(x, self._get_qparams(x, bits))

    def _get_qparams(self, weight: Tensor, bits: int) -> QParams:
        if self._is_started is None:
            self._is_started = bool(self.mean_abs.isfinite().all())
        if not self._is_started:
            self._start(weight)
        index = bits - self.supported_bits.start
        step = keep_positive(self.trained[index], self._compute_initial(bits)).to(weight.device, compute_dtype(weight))
        return QParams(step, torch.zeros_like(step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @torch.no_grad()
    def _start(self, weight: Tensor) -> None:
        reduced = [dim for dim, size in enumerate(self.mean_abs.shape) if size == 1]
        self.mean_abs.copy_(weight.double().abs().mean(reduced, keepdim=True))
        for bits, step in zip(self.supported_bits, self.trained, strict=True):
            step.copy_(self._compute_initial(bits))
        self._is_started = True

    def _compute_initial(self, bits: int) -> Tensor:
        return 2 * self.mean_abs / math.sqrt(2 ** (bits - 1) - 1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        check_loaded_parameters(state_dict, prefix, self.spec.point.key)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._is_started = None
