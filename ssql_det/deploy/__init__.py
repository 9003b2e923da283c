"""A detector as one ONNX file: exported here with torch, run anywhere without it.

Without torch, only NumPy, Pillow and onnxruntime:

=========== ==============================================================================
metadata    what an exported file says about itself: classes, size rule, weights, versions
session     open an exported file with onnxruntime
postprocess boxes scaled to the given image, masks pasted into it
detector    detect objects in an image
folder      detect in many images, write pictures and COCO's JSON
=========== ==============================================================================

With torch (and the extra ``deploy``):

=============== ==========================================================================
operators       NMS of many sets of boxes, and quantization, each as one operator of torch and of ONNX
selection       what lies between the networks: boxes, proposals, detections, pooling
graph           the inference graph of a detector, in operations that ONNX has
tracing         a copy of a network that torch can trace
quantization    the quantization that a network is exported with
integers        a copy of a network that computes with integers
onnx_passes     weights of few bits in bytes, and more of the graph in integers
export          write a detector or a backbone as an ONNX file
check_images    the images on which the file and the engine are compared
exact_selection select boxes in torch as the file does
agreement       compare the file with the engine
integer_graph   a file in integers, taken apart
integer_check   compare it with the simulation, and count what runs in integers
evaluation      the file in the engine's place, to measure its AP
=============== ==========================================================================

Importing this package does not import torch.
"""

from ssql_det.deploy.detector import Detections, Detector

__all__ = ["Detections", "Detector"]
