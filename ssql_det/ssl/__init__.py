"""Floor 2: self-supervised methods, one file each, and SSQL, which wraps any of them.

======== ==============================================================================
views    what is done to an image before a network sees it, twice
losses   pure functions
momentum a moving average of a network, and a queue of what it has seen
method   what a method is: encode, targets, loss; its heads; the table of methods, which each file enters its own into
simsiam  Chen and He, CVPR 2021
byol     Grill et al., NeurIPS 2020
moco     He et al., CVPR 2020, in its second version
simclr   Chen et al., ICML 2020
ssql     Cao et al., ECCV 2022: the same network quantized, against its float targets
======== ==============================================================================
"""

from ssql_det.core.registry import import_modules
from ssql_det.ssl.byol import BYOL
from ssql_det.ssl.method import METHODS, Method
from ssql_det.ssl.moco import MoCo
from ssql_det.ssl.simclr import SimCLR
from ssql_det.ssl.simsiam import SimSiam
from ssql_det.ssl.ssql import SSQL, encoder_points

__all__ = ["BYOL", "METHODS", "SSQL", "Method", "MoCo", "SimCLR", "SimSiam", "encoder_points"]

all(import_modules(__name__, __path__))  # each method registers itself
