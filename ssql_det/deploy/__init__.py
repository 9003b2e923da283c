"""A detector as one ONNX file: exported here with torch, run anywhere without it.

Without torch, only NumPy, Pillow and onnxruntime:

=========== ==============================================================================
metadata    what an exported file says about itself: classes, size rule, weights, versions
detector    open an exported file and detect objects in an image
folder      detect in many images, write pictures and COCO's JSON
=========== ==============================================================================

With torch (and the extra ``deploy``):

=========== ==============================================================================
graph       the inference graph of a detector, in operations that ONNX has
export      write a detector or a backbone as an ONNX file, and check it
=========== ==============================================================================

Importing this package does not import torch.
"""

from ssql_det.deploy.detector import Detections, Detector

__all__ = ["Detections", "Detector"]
