"""Floor 3: detectors. Everything uses the engine through ``d2``, so it works the same on Detectron2 and on minid2.

===================== ==================================================================
config                the ``SSQL_DET`` node, its defaults, and checks of a config's values
modeling              a narrow ResNet, and a C4 head that fits its backbone
points                where a detector is quantized, by scope
detector              build a detector from a config, and load weights into it
datasets              data sets by name, and custom data sets
evaluation_data       images to calibrate with and to evaluate on
evaluation_checks     whether a data set can be evaluated on
train_loader          training images, in an order that depends on the seed alone
train                 the training loop and precise BN
training_checkpoint   checkpoints of a training, and resuming
periodic_evaluation   evaluations during a training
evaluation            evaluate with COCO's or VOC's metrics
quantized_evaluation  calibrate and evaluate at a bit-width: one row
sweep                 a row for every bit-width
sensitivity           the loss of each part when it alone is quantized
predict               detections on a user's images
engine_errors         the engine's errors about configs and data as user errors
===================== ==================================================================

Importing this package registers its backbones and its head with the engine, under the names that configs use.
"""

from ssql_det.detect import modeling
from ssql_det.detect.config import SSQL_DET_DEFAULTS, make_config_label
from ssql_det.detect.points import SCOPES, detector_points

__all__ = ["SCOPES", "SSQL_DET_DEFAULTS", "detector_points", "make_config_label", "modeling"]
