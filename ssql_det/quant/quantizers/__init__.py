"""How a tensor is quantized: one file a quantizer, registered by name for weights or for activations.

=========== ================== ==========================================================================
minmax      weight, activation the published one: the range is all that there is
percentile  activation         without the farthest values
mse         weight, activation the range, or the scale of a channel, of the least error
centred     weight             a grid symmetric about 0, by least squares
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
