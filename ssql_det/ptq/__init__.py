"""Repairs without labels: learn, for one bit-width, what gives back what quantization costs.

============== ====================================================================
blocks         parts of a network that are reconstructed one after the other
records        their inputs and float outputs, within bounded memory
errors         errors of their outputs
fisher         weights of these errors
reconstruction learn the rounding of weights and the steps of activations by blocks
method         what a reconstruction learns with; the registry of methods
rounding       the integers of weights, while they are learned and after
adaround       layer by layer
brecq          block by block
brecq_fisher   block by block, with weighted errors
qdrop          block by block, with quantization dropped at random
pipeline       make the repairs of a scheme at a bit-width
quantize       calibrate and repair a network at several bit-widths, into one file that resumes
steps          activation quantizers whose steps are trained
tuning         tune norms, biases and steps towards the float network's outputs
smoothing      the losses of a part of a network at its bit-widths, without noise
prediction     the loss of a network from those of its parts, and from measured ones
assignment     the best bit-widths of the parts of a network under a limit, exactly
============== ====================================================================
"""

from ssql_det.core.registry import import_modules
from ssql_det.ptq.blocks import Block, FpnLevel, find_backbone_blocks
from ssql_det.ptq.errors import BlockResult
from ssql_det.ptq.method import METHODS, Method
from ssql_det.ptq.pipeline import RepairData, RepairResult, make_repairs
from ssql_det.ptq.quantize import check_role_images, quantize_network
from ssql_det.ptq.reconstruction import reconstruct

__all__ = [
    "METHODS",
    "Block",
    "BlockResult",
    "FpnLevel",
    "Method",
    "RepairData",
    "RepairResult",
    "check_role_images",
    "find_backbone_blocks",
    "make_repairs",
    "quantize_network",
    "reconstruct",
]

all(import_modules(__name__, __path__))  # each method registers itself
