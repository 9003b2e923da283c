"""Quantizers: how a tensor is quantized. Each is one file, registered by name for weights or for activations.

====================== ================== ==========================================================================
minmax                 weight, activation the whole range (of an activation, as observed), as published
percentile             activation         the range without the outermost values
mse                    weight, activation the range (of a weight, the scale per channel) of least error
centred                weight             values symmetric about 0, scaled by least squares
lsq                    weight, activation a trained step for each bit-width
pact                   activation         a trained clip for each bit-width
dorefa                 weight             limited by ``tanh``, on values symmetric about 0, as published with ``pact``
adaround, brecq,       weight             integers that were learned by reconstruction (``learned_rounding``)
brecq-fisher, qdrop
====================== ================== ==========================================================================

``soft_rounding`` is a weight while its integers are learned, ``weight_grid`` the values that a weight may take,
``trained`` what quantizers with trained parameters share.
"""

from ssql_det.core.registry import import_modules
from ssql_det.quant.quantizers.learned_rounding import LearnedRounding
from ssql_det.quant.quantizers.observers import Histogram, MinMaxObserver, Observer
from ssql_det.quant.quantizers.quantizer import (
    ACTIVATIONS,
    WEIGHTS,
    QuantizedTensor,
    Quantizer,
    RangeQuantizer,
    TensorSpec,
)
from ssql_det.quant.quantizers.soft_rounding import SoftRounding
from ssql_det.quant.quantizers.weight_grid import GridQuantizer, WeightGrid

__all__ = [
    "ACTIVATIONS",
    "WEIGHTS",
    "GridQuantizer",
    "Histogram",
    "LearnedRounding",
    "MinMaxObserver",
    "Observer",
    "QuantizedTensor",
    "Quantizer",
    "RangeQuantizer",
    "SoftRounding",
    "TensorSpec",
    "WeightGrid",
]

all(import_modules(__name__, __path__))  # each quantizer registers itself
