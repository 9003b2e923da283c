"""Quantize a network at any bit-width with one copy of weights. The public names are these:

>>> from ssql_det.quant import Bits, Quantization, Scheme
>>> quantization = Quantization(model, scheme=Scheme.parse("act=mse"))
>>> quantization.calibrate(loader)
>>> with quantization.at(Bits(4, 4)):
...     features = model(images)

============ ==========================================================================
affine       the arithmetic, exact
bits         widths, and schedules that draw them
points       where: a list of points, by families of networks
quantizers   how: one file each
scheme       which of them serve a network
quantization what was learned about one network, and its modes
widths       the loop over widths
norms        statistics of norms at a width
cost         bytes, multiply-adds, bit-operations
============ ==========================================================================
"""

from ssql_det.core.rows import Calibration
from ssql_det.quant.affine import QParams, choose_qparams, fake_quantize, fake_quantize_weight
from ssql_det.quant.bits import Bits, BitsSchedule, FixedBits, SampledBits, parse_widths
from ssql_det.quant.cost import Cost, CostProfile, profile_cost
from ssql_det.quant.points import FAMILIES, Family, QuantPoint, Side, quant_points
from ssql_det.quant.quantization import Quantization
from ssql_det.quant.quantizers import ACTIVATIONS, WEIGHTS, QuantizedTensor, Quantizer, RangeQuantizer
from ssql_det.quant.scheme import Scheme
from ssql_det.quant.widths import evaluate_at_width, evaluate_at_widths

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "WEIGHTS",
    "Bits",
    "BitsSchedule",
    "Calibration",
    "Cost",
    "CostProfile",
    "Family",
    "FixedBits",
    "QParams",
    "QuantPoint",
    "Quantization",
    "QuantizedTensor",
    "Quantizer",
    "RangeQuantizer",
    "SampledBits",
    "Scheme",
    "Side",
    "choose_qparams",
    "evaluate_at_width",
    "evaluate_at_widths",
    "fake_quantize",
    "fake_quantize_weight",
    "parse_widths",
    "profile_cost",
    "quant_points",
]
