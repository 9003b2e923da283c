"""Quantizers: how a tensor is quantized. One file each, registered by name for weights or for activations.

=========== ================== ==========================================================================
minmax      weight, activation as published: the whole range
percentile  activation         without the outermost values
mse         weight, activation the range, or a channel's scale, of least error
centred     weight             a grid symmetric about 0, its scale by least squares
=========== ================== ==========================================================================
"""

from ssql_det.core.registry import import_modules
from ssql_det.quant.quantizers.observers import Histogram, MinMaxObserver, Observer
from ssql_det.quant.quantizers.quantizer import (
    ACTIVATIONS,
    WEIGHTS,
    QuantizedTensor,
    Quantizer,
    RangeQuantizer,
    TensorSpec,
)

__all__ = [
    "ACTIVATIONS",
    "WEIGHTS",
    "Histogram",
    "MinMaxObserver",
    "Observer",
    "QuantizedTensor",
    "Quantizer",
    "RangeQuantizer",
    "TensorSpec",
]

all(import_modules(__name__, __path__))
