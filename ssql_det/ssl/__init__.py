"""Self-supervised methods, one file each, and SSQL, which wraps any of them.

============= =================================================================================================
augmentations image transforms that make the views of an image
losses        pure functions of features
momentum      the momentum encoder and the queue of MoCo
method        the interface of a method (encode, targets, loss), its MLP heads, the registry of methods
simsiam       Chen and He, CVPR 2021
byol          Grill et al., NeurIPS 2020
moco          MoCo v2, Chen et al., 2020
simclr        Chen et al., ICML 2020
ssql          Cao et al., ECCV 2022: trains a method's network also quantized, against the targets of the float pass
============= =================================================================================================
"""

from ssql_det.core.registry import import_modules
from ssql_det.ssl.byol import BYOL
from ssql_det.ssl.method import METHODS, Method
from ssql_det.ssl.moco import MoCo
from ssql_det.ssl.simclr import SimCLR
from ssql_det.ssl.simsiam import SimSiam
from ssql_det.ssl.ssql import SSQL, encoder_quant_points

__all__ = ["BYOL", "METHODS", "SSQL", "Method", "MoCo", "SimCLR", "SimSiam", "encoder_quant_points"]

all(import_modules(__name__, __path__))  # each method registers itself
