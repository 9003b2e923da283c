"""Quantizers: how a tensor is quantized. Each is one file, registered by name for weights or for activations.

=========== ================== ==========================================================================
minmax      weight, activation the whole range (of an activation, as observed), as published
percentile  activation         the range without the outermost values
mse         weight, activation the range (of a weight, the scale per channel) of least error
centred     weight             values symmetric about 0, scaled by least squares
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

all(import_modules(__name__, __path__))  # each quantizer registers itself
