"""Train, quantize and evaluate detectors; ``ssql_det.d2`` imports the engine (Detectron2 or its stand-in, minid2).

Its level is 3: it imports only packages of lower levels (CONTRIBUTING.md).

===================== ==================================================================
config                the ``SSQL_DET`` node, its defaults, and checks of a config's values
modeling              a ResNet with few channels, and a C4 head for any ResNet backbone
points                which tensors of a detector are quantized, by scope
detector              build a detector from a config, and load weights into it
datasets              data sets by name, and custom data sets in COCO's format
evaluation_data       calibration images and evaluation images
evaluation_checks     whether a data set can be evaluated on
train_loader          training images, in an order that depends on the seed alone
schedule              a schedule that follows the number of training images
train                 the training loop and precise BN
training_step         the passes of a training step, and the check that losses and gradients are finite
quantized_training    the bit-widths that are trained, and how the detector is quantized there
any_precision         the step that trains a float pass and quantized passes
sampling_replay       let quantized passes see the anchors and regions that the float pass sampled
training_checkpoint   save and resume the state of a training
periodic_evaluation   evaluate during a training
evaluation            evaluate with COCO's or VOC's metrics
evaluators            COCO's and VOC's evaluators of the engine, with one rule for missing objects and detections
replay                let passes of the quantized detector see the float detector's proposals
quantized_evaluation  calibrate, evaluate at a bit-width, and make its result row
blocks                the blocks that reconstruction learns one after the other
detector_outputs      record what the backbone and the predictors return in a pass
distillation_terms    the terms of the difference between the outputs of two passes
distillation          the difference between the outputs of the quantized and the float detector
selection             try cheap schemes, and take the best one
quantize              calibrate and repair a detector for some bit-widths
sweep                 evaluate at several bit-widths, with a result row for each
groups                groups of modules that get a bit-width together
selection_data        the selection images as a data set that the evaluators can read
measurements          measure AP or the distillation loss on them, once for all commands
sensitivity           how much the detector degrades when only one group of modules is quantized
search                the bit-width of each group, under a budget
search_rows           evaluate what a search took on the test set
search_page           the page of a search
predict               detections on a user's images
engine_errors         translate the engine's errors about configs and data to ``UserError``
===================== ==================================================================

Importing this package registers its backbones and its head with the engine, under the names that configs use.
"""

from ssql_det.detect import modeling
from ssql_det.detect.config import SSQL_DET_DEFAULTS, make_config_label
from ssql_det.detect.points import SCOPES, detector_points

__all__ = ["SCOPES", "SSQL_DET_DEFAULTS", "detector_points", "make_config_label", "modeling"]
