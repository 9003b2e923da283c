"""Floor 2: self-supervised methods, one file each, and SSQL, which wraps any of them.

=======  ==============================================================================
views    what is done to an image before a network sees it, twice
heads    projectors and predictors from lists of widths
losses   pure functions
method   what a method is: encode, targets, loss
simsiam  Chen and He, CVPR 2021
ssql     Cao et al., ECCV 2022: the same network quantized, against its float targets
=======  ==============================================================================
"""

from ssql_det.ssl.method import Method
from ssql_det.ssl.simsiam import SimSiam
from ssql_det.ssl.ssql import SSQL, encoder_points

__all__ = ["SSQL", "Method", "SimSiam", "encoder_points"]
