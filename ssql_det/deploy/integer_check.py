"""Check a network in integers against the simulation: which layers a runtime computes in integers, how many elements of
each quantized tensor are equal, and how far the float results of the last layers are apart.

For these every part of the graph gets the simulation's own tensors, see ``integer_graph``.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.deploy.exact_selection import exact_selection
from ssql_det.deploy.integer_graph import OWNERS, Array, GraphParts, Recording
from ssql_det.deploy.session import make_session, make_session_options
from ssql_det.quant import Bits, Quantization, QuantPoint
from ssql_det.quant.bits import format_bits
from ssql_det.quant.forward import get_device
from ssql_det.quant.hooks import hooking
from ssql_det.quant.points import assign_bits
from ssql_det.quant.tracing import Chain, Operation, trace_pass

LEAST_EQUAL = 0.99  # of the elements of each quantized tensor; the others are one step apart
FEW = 5  # elements of a tensor that may differ however small it is, as a rounding decides
RESULT_TOLERANCE = 1e-4  # of float results, relative to the greatest
_POOLER = "ROIAlign"  # the name of the engines' layer
_INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm")
_WEIGHT = re.compile(rf"(?:{'|'.join(OWNERS)})\.(.+)\.integers")
_TINY = 1e-12


@dataclass(frozen=True)
class Coverage:
    """Multiply-adds of a pass, those that run in integers, and those of each layer that does not."""

    macs: int
    integer_macs: int
    float_layers: Mapping[str, int]

    @property
    def share(self) -> float:
        return self.integer_macs / max(self.macs, 1)


def find_coverage(path: Path, operations: Sequence[Operation]) -> Coverage:
    """What onnxruntime computes in integers, by the graph that it runs; ``operations`` are those of a traced pass."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        options = make_session_options()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        make_session(str(path), options)
        optimized = onnx.load(options.optimized_model_filepath)
    integer_calls = Counter(
        found[1]
        for node in optimized.graph.node
        if node.op_type in _INTEGER_OPERATORS
        for found in map(_WEIGHT.match, node.input)
        if found
    )
    float_layers: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for operation in operations:
        calls[operation.path] += 1
        if calls[operation.path] > integer_calls[operation.path]:
            float_layers[operation.path] += operation.macs
    macs = sum(operation.macs for operation in operations)
    return Coverage(macs, macs - sum(float_layers.values()), dict(float_layers.most_common()))


@dataclass(frozen=True)
class TensorAgreement:
    """Elements of a quantized tensor: all, those with the simulation's integer, those one step beside it."""

    point: str
    elements: int
    equal: int
    one_step: int

    @property
    def further(self) -> int:
        return self.elements - self.equal - self.one_step

    @property
    def is_close(self) -> bool:
        return self.further == 0 and self.one_step <= max(FEW, (1 - LEAST_EQUAL) * self.elements)

    def __add__(self, other: TensorAgreement) -> TensorAgreement:
        counts = (self.elements + other.elements, self.equal + other.equal, self.one_step + other.one_step)
        return TensorAgreement(self.point, *counts)

    def to_dict(self) -> dict[str, int]:
        counts = {"elements": self.elements, "equal": self.equal}
        return {**counts, "one step apart": self.one_step, "further apart": self.further}


@dataclass(frozen=True)
class IntegerReport:
    """How a file in integers differs from the simulation on some images."""

    coverage: Coverage
    tensors: Sequence[TensorAgreement]
    result_differences: Mapping[str, float]  # of layers whose result is float, relative to the greatest element

    @property
    def is_close(self) -> bool:
        return all(each.is_close for each in self.tensors) and all(
            each <= RESULT_TOLERANCE for each in self.result_differences.values()
        )

    @property
    def total(self) -> TensorAgreement:
        sums = (sum(getattr(each, name) for each in self.tensors) for name in ("elements", "equal", "one_step"))
        return TensorAgreement("all", *sums)

    def to_dict(self) -> dict[str, Any]:
        by_share = sorted(self.tensors, key=lambda each: each.equal / max(each.elements, 1))
        return {
            "agrees": self.is_close,
            "multiply-adds": self.coverage.macs,
            "in integers": self.coverage.share,
            "float layers": dict(self.coverage.float_layers),
            "all tensors": self.total.to_dict(),
            "result_difference": max(self.result_differences.values(), default=0.0),
            "results": dict(self.result_differences),
            "tensors": {each.point: each.to_dict() for each in by_share},
        }


def check_integers(
    path: Path,
    keys: Sequence[str],
    quantization: Quantization,
    bits: Bits,
    overrides: Mapping[str, Bits] | None,
    graph: nn.Module,
    images: Sequence[Tensor],
) -> IntegerReport:
    """Compare a file with the simulation that it was made from.

    ``keys`` are what the export returned. ``graph`` is the :class:`DetectorGraph` or :class:`BackboneGraph` of the
    quantization's network, ``images`` are uint8 [height, width, 3].
    """
    model, points = quantization.model, quantization.points
    first = images[0].to(get_device(model))
    trace = trace_pass(model, points, first, lambda network, image: graph(image))
    quantized = {point.path for point in points if point.is_weight}
    ends = (each for each in trace.chains if each.output_point is None and not each.activation)
    float_results = [each for each in ends if each.layer in quantized]
    totals: dict[str, TensorAgreement] = {}
    differences: dict[str, float] = {}
    parts: GraphParts | None = None
    for image in track(images, "comparing integers"):
        recording = record_simulation(quantization, bits, overrides, graph, image, float_results)
        parts = parts or GraphParts(path, keys, recording)
        integers, results = parts.run(recording, image)
        for index, (key, expected) in zip(parts.indices, recording.integers, strict=True):
            if index in integers:
                each = compare_tensors(key, integers[index], expected)
                totals[key] = totals[key] + each if key in totals else each
        for layer, found in results.items():
            pairs = zip(found, recording.results[layer], strict=True)
            differences[layer] = max(differences.get(layer, 0.0), *(find_difference(*pair) for pair in pairs))
    return IntegerReport(find_coverage(path, trace.operations), list(totals.values()), differences)


def compare_tensors(point: str, found: Array, expected: Array) -> TensorAgreement:
    """Compare integers, element by element.

    >>> compare_tensors("fc:input", np.uint8([0, 1, 255, 4]), np.uint8([0, 2, 0, 4]))
    TensorAgreement(point='fc:input', elements=4, equal=2, one_step=1)
    """
    distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    return TensorAgreement(point, distance.size, int((distance == 0).sum()), int((distance == 1).sum()))


def find_difference(found: Array, expected: Array) -> float:
    """The greatest difference, relative to the greatest element; of a NaN, infinity.

    >>> find_difference(np.array([1.0, 8.0]), np.array([3.0, 8.0])), find_difference(np.array([np.nan]), np.ones(1))
    (0.25, inf)
    """
    difference = float(np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), _TINY))
    return difference if np.isfinite(difference) else np.inf


@torch.no_grad()
def record_simulation(
    quantization: Quantization,
    bits: Bits,
    overrides: Mapping[str, Bits] | None,
    graph: nn.Module,
    image: Tensor,
    float_results: Sequence[Chain] = (),
) -> Recording:
    """The integers at all points of activations, in a pass of the simulated network through its ``graph``.

    ``float_results``: layers whose results, which no point quantizes, are recorded too.
    """
    recording = Recording()
    label = format_bits(bits, overrides)

    def record(x: Tensor, point: QuantPoint, width: int) -> Tensor:
        quantizer = quantization.get_quantizer(point, label)
        quantized = quantizer.quantize(x, width)
        if quantized is None:
            raise UserError(f"{point.key} has no integers at {label}; calibrate with more images")
        recording.integers.append((point.key, quantized.integers.cpu().numpy()))
        return quantizer(x, width)

    def record_regions(module: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        recording.regions.append(args[1][:, 1:].cpu().numpy())  # behind the index of the image

    def record_result(module: nn.Module, args: Any, result: Tensor, layer: str) -> None:
        recording.results.setdefault(layer, []).append(result.cpu().numpy())

    widths = assign_bits(quantization.points, bits, overrides)
    model = quantization.model
    with quantization.at(bits, overrides), exact_selection(), ExitStack() as stack:
        for point, width in widths.items():
            if not point.is_weight and width is not None:
                stack.enter_context(hooking(model, point, partial(record, point=point, width=width)))
        for layer in model.modules():
            if type(layer).__name__ == _POOLER:
                stack.callback(layer.register_forward_pre_hook(record_regions).remove)
        for chain in float_results:
            is_inside = chain.norm.startswith(f"{chain.layer}.")  # the norm, as in the engines' convs
            module = model.get_submodule(chain.norm if chain.norm and not is_inside else chain.layer)
            stack.callback(module.register_forward_hook(partial(record_result, layer=chain.layer)).remove)
        graph(image.to(get_device(model)))
    return recording
