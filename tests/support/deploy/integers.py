"""Small detectors in integers: quantized, exported, and taken apart."""

from collections import Counter

import onnx
import torch
from support.deploy.detectors import CHECKPOINT, make_detector
from support.detect.configs import random_images
from torch import nn

from ssql_det.d2 import FrozenBatchNorm2d
from ssql_det.deploy.export import export_detector, make_integers
from ssql_det.deploy.graph import DetectorGraph
from ssql_det.deploy.integer_check import check_integers
from ssql_det.deploy.session import make_session, make_session_options
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import calibrate_detector
from ssql_det.quant import Quantization, Scheme, parse_bit_widths
from ssql_det.quant.tracing import trace_pass

SCHEME = Scheme(placement="integer")


def to_pixels(batch):
    return [inputs["image"].permute(1, 2, 0).contiguous() for inputs in batch]


def calibration_batches():
    return [[inputs] for inputs in random_images(4)]


def check_images():
    """Smooth images as those of the calibration, and images beyond its range: white, black, and noise."""
    smooth = to_pixels(random_images(2, sides=((90, 96), (61, 120)), seed=5))
    noise = torch.randint(0, 2, (64, 75, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8) * 255
    return [*smooth, torch.full((70, 64, 3), 255, dtype=torch.uint8), torch.zeros(64, 96, 3, dtype=torch.uint8), noise]


def vary_norms(model):
    """Of each norm, a weight becomes 0, one negative, and one so small that its bias does not fit into 32 bits."""
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            norm.weight.data[:4] *= torch.tensor([0, -1, -1, 1e-12])
            norm.bias.data[3] = 0.3


class IntegerDetector:
    """A detector of ``KINDS``, quantized at ``bits``, and its file."""

    def __init__(self, path, kind, bits, overrides=None, scope="all", quantize=None, **keys):
        """``quantize`` makes the quantization from the config and the model; else it is calibrated with min-max."""
        self.path, self.overrides, self.scope = path, overrides, scope
        self.cfg, self.model = make_detector(kind, **keys)
        vary_norms(self.model)
        (self.bits,) = parse_bit_widths(bits)
        if quantize is None:
            self.quantization = Quantization(self.model, detector_points(self.model, scope, "integer"), SCHEME)
            calibrate_detector(self.quantization, calibration_batches())
        else:
            self.quantization = quantize(self.cfg, self.model)
        self.graph = DetectorGraph(self.model)
        self.keys = self.export(path)

    def export(self, path):
        integers = make_integers(self.quantization, self.bits, self.scope, self.overrides)
        return export_detector(self.cfg, self.model, CHECKPOINT, "tiny.yaml", path, integers)

    def check(self, images=None, path=None):
        images = check_images() if images is None else images
        return check_integers(
            path or self.path, self.keys, self.quantization, self.bits, self.overrides, self.graph, images
        )

    def count_layers(self):
        """How often a pass of the network calls layers, by their class."""
        operations = trace_pass(self.model, (), check_images()[0], lambda model, image: self.graph(image)).operations
        names = [type(self.model.get_submodule(each.path)).__mro__ for each in operations]
        return Counter(
            next(each.__name__ for each in mro if each.__module__.startswith("torch.nn.modules")) for mro in names
        )

    def optimize(self, folder):
        return optimize(str(self.path), folder)


def optimize(model, folder):
    """The graph that onnxruntime runs; ``model`` is a path or the content of a file."""
    options = make_session_options()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    make_session(model, options)
    return onnx.load(options.optimized_model_filepath).graph


def count_kernels(graph):
    return Counter(node.op_type for node in graph.node)
