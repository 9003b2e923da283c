"""Quantize a network at any bit-width with one copy of weights. The public names are these:

>>> from ssql_det.quant import Bits, calibrate, quant_points, quantized
>>> points = quant_points(model)
>>> ranges = calibrate(model, loader, points)
>>> with quantized(model, points, ranges, Bits(4, 4)):
...     features = model(images)
"""

from ssql_det.quant.affine import QParams, choose_qparams, fake_quantize, fake_quantize_weight
from ssql_det.quant.bits import Bits, BitsSchedule, FixedBits, SampledBits, parse_widths
from ssql_det.quant.calibrate import calibrate
from ssql_det.quant.context import observing, quantized
from ssql_det.quant.cost import Cost, CostProfile, profile_cost
from ssql_det.quant.observers import MinMax, Observer
from ssql_det.quant.points import QuantPoint, Side, block_points, quant_points
from ssql_det.quant.ranges import Ranges
from ssql_det.quant.recalibrate import recalibrated

__all__ = [
    "Bits",
    "BitsSchedule",
    "Cost",
    "CostProfile",
    "FixedBits",
    "MinMax",
    "Observer",
    "QParams",
    "QuantPoint",
    "Ranges",
    "SampledBits",
    "Side",
    "block_points",
    "calibrate",
    "choose_qparams",
    "fake_quantize",
    "fake_quantize_weight",
    "observing",
    "parse_widths",
    "profile_cost",
    "quant_points",
    "quantized",
    "recalibrated",
]
