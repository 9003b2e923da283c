"""Quantize a network at any bit-width, with one copy of its weights.

>>> from ssql_det.quant import Bits, Quantization, Scheme
>>> quantization = Quantization(model, scheme=Scheme.parse("act=mse"))
>>> quantization.calibrate(loader)
>>> with quantization.at(Bits(4, 4)):  # bits of weights, bits of activations
...     features = model(images)

================= =====================================================================
affine            quantization arithmetic
triton_kernel     the same in one pass over the memory of a GPU
bits              bit-widths, and schedules of them
points            which tensors are quantized, by families of networks
quantizers        how a tensor is quantized, one file each
scheme            the choice of quantizers, norm statistics and placement of points
quantization      the quantizers of one network, and contexts that apply them
quantization_file the file of a network's calibrated quantizers
hooks             contexts that replace tensors at points, or override attributes
forward           how a batch is passed to a network
evaluate          evaluation at several bit-widths
training          quantizers that are trained with their network
equalization      channels between layers, rescaled
norms             matched and re-estimated norms at a bit-width
repair            what is learned for one bit-width, beyond the calibration
switchable_norms  norms of their own for each bit-width of weights
readiness         what must be calibrated or learned before a bit-width can run
folding           norms and biases as integer arithmetic computes them
integer_form      a network's integers at a bit-width, as a file holds them
tracing           the operations of one forward pass
joints            tensors between layers that a traced pass finds
tensor_cache      values kept until a tensor changes
cost              model size, multiply-adds, bit-operations
================= =====================================================================
"""

from ssql_det.core.rows import Calibration
from ssql_det.quant.affine import QParams, choose_qparams, fake_quantize, fake_quantize_weight
from ssql_det.quant.bits import Bits, BitsSchedule, FixedBits, SampledBits, parse_bit_widths
from ssql_det.quant.cost import Cost, CostProfile, profile_cost
from ssql_det.quant.evaluate import evaluate_at_bit_width, evaluate_at_bit_widths
from ssql_det.quant.points import FAMILIES, Family, QuantPoint, Side, quant_points
from ssql_det.quant.quantization import Quantization
from ssql_det.quant.quantizers import ACTIVATIONS, WEIGHTS, QuantizedTensor, Quantizer, RangeQuantizer
from ssql_det.quant.scheme import Scheme

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
    "evaluate_at_bit_width",
    "evaluate_at_bit_widths",
    "fake_quantize",
    "fake_quantize_weight",
    "parse_bit_widths",
    "profile_cost",
    "quant_points",
]
