"""Floor 3: detectors, on the door alone, so that all of it works the same on Detectron2 and on minid2.

============ ===========================================================================
config       the ``SSQL_DET`` node and its defaults, and what a config may not say
modeling     the narrow ResNet of small machines, and a C4 head whose ``res5`` has the backbone's blocks
points       where a detector is quantized, in scope ``backbone`` or ``all``
data         images to calibrate with and to evaluate on
stream       images to train on, in an order that is a function of the seed
measure      calibrate, quantize, evaluate as the data set wants it: one row
sweep        a row for every bit-width
sensitivity  which part few bits hurt
predict      a user's own images
train        the loop and the norms after it, with ``watch``; a detector from a file, and its ``checkpoints``
answers      the engine's exceptions as sentences
============ ===========================================================================

Importing this package registers its parts with the engine, under the names that configs give.
"""

from ssql_det.detect import modeling
from ssql_det.detect.config import SSQL_DET_DEFAULTS, make_config_label
from ssql_det.detect.points import SCOPES, detector_points

__all__ = ["SCOPES", "SSQL_DET_DEFAULTS", "detector_points", "make_config_label", "modeling"]
