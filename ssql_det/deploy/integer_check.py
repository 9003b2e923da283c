"""Check a network in integers against the simulation: which layers a runtime computes in integers, and how many
elements of each quantized tensor are equal.

For the second question every part of the graph between two quantizations gets the simulation's own integers, and every
pooling of regions the simulation's regions, so that a difference stays where it arises.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.deploy.exact_selection import exact_selection
from ssql_det.deploy.session import INPUT_NAME, make_session, make_session_options
from ssql_det.quant import Bits, Quantization, QuantPoint
from ssql_det.quant.bits import format_bits
from ssql_det.quant.forward import get_device
from ssql_det.quant.hooks import hooking
from ssql_det.quant.points import assign_bits
from ssql_det.quant.tracing import Operation, trace_pass

LEAST_EQUAL = 0.99  # of the elements of each quantized tensor; the others are one step apart
FEW = 5  # elements of a tensor that may differ however small it is, as a rounding decides
_POOLER = "ROIAlign"  # the name of the engines' layer
_GIVEN = "/given"  # behind the name of a tensor that a part of the graph gets from outside
_INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm")
_WEIGHT = re.compile(r"(?:detector|backbone)\.(.+)\.integers")
_QUANTIZED = "quantize_dequantize"  # the operator's name, from which torch makes those of its results


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
class Recording:
    """What a pass of the simulated network had, in its order."""

    integers: list[tuple[str, NDArray[np.integer[Any]]]] = field(default_factory=list)  # with the keys of their points
    regions: list[NDArray[np.float32]] = field(default_factory=list)  # boxes [N, 4] that were pooled


@dataclass(frozen=True)
class IntegerReport:
    """How a file in integers differs from the simulation on some images."""

    coverage: Coverage
    tensors: Sequence[TensorAgreement]

    @property
    def is_close(self) -> bool:
        return all(each.is_close for each in self.tensors)

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
    operations = trace_pass(model, points, first, lambda network, image: graph(image)).operations
    totals: dict[str, TensorAgreement] = {}
    for image in track(images, "comparing integers"):
        recording = record_simulation(quantization, bits, overrides, graph, image)
        for each in compare_integers(path, keys, recording, image):
            totals[each.point] = totals[each.point] + each if each.point in totals else each
    return IntegerReport(find_coverage(path, operations), list(totals.values()))


@torch.no_grad()
def record_simulation(
    quantization: Quantization, bits: Bits, overrides: Mapping[str, Bits] | None, graph: nn.Module, image: Tensor
) -> Recording:
    """The integers at all points of activations, in a pass of the simulated network through its ``graph``."""
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

    widths = assign_bits(quantization.points, bits, overrides)
    with quantization.at(bits, overrides), exact_selection(), ExitStack() as stack:
        for point, width in widths.items():
            if not point.is_weight and width is not None:
                stack.enter_context(hooking(quantization.model, point, partial(record, point=point, width=width)))
        for layer in quantization.model.modules():
            if type(layer).__name__ == _POOLER:
                stack.callback(layer.register_forward_pre_hook(record_regions).remove)
        graph(image.to(get_device(quantization.model)))
    return recording


def compare_integers(path: Path, keys: Sequence[str], recording: Recording, image: Tensor) -> list[TensorAgreement]:
    """Compare each quantized tensor of the file with the simulation's, if its part gets the simulation's tensors.

    ``keys`` are the points of the exported graph, in the order of a pass, see
    :func:`ssql_det.deploy.integers.computing_integers`. Tensors of several calls of a module are added up.
    """
    simulated = iter(recording.integers)
    pairs = [(index, *next(simulated)) for index, key in enumerate(keys) if key]
    if [key for key in keys if key] != [key for key, _ in recording.integers]:
        raise AssertionError("the exported network and the simulation do not pass the same points")
    model, outputs = _take_integers_from_outside(path, {index: integers for index, _, integers in pairs})
    given = {f"{name}{_GIVEN}": integers for name, integers in outputs.values()}
    given |= _take_regions_from_outside(model.graph, recording.regions)
    session = make_session(model.SerializeToString(), make_session_options())
    found = session.run([name for name, _ in outputs.values()], {INPUT_NAME: image.numpy(), **given})
    by_index = dict(zip(outputs, found, strict=True))
    totals: dict[str, TensorAgreement] = {}
    for index, key, integers in pairs:
        if index in by_index:
            distance = np.abs(by_index[index].astype(np.int64) - integers.astype(np.int64))
            each = TensorAgreement(key, distance.size, int((distance == 0).sum()), int((distance == 1).sum()))
            totals[key] = totals[key] + each if key in totals else each
    return list(totals.values())


def _take_integers_from_outside(
    path: Path, recorded: Mapping[int, NDArray[Any]]
) -> tuple[Any, dict[int, tuple[str, NDArray[Any]]]]:
    """The file's graph, in which each DequantizeLinear reads an input and each QuantizeLinear is an output, and the
    names of these outputs with what is recorded for them, by index of the quantization."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    outputs: dict[int, tuple[str, NDArray[Any]]] = {}
    del model.graph.output[:]
    for index, integers in recorded.items():
        node = dequantizers.get(f"{_QUANTIZED}_{index}" if index else _QUANTIZED)
        if node is None:  # the exporter has merged it with an equal one
            continue
        name = node.input[0]
        if name.endswith(_GIVEN):  # two equal quantizations of one tensor
            continue
        outputs[index] = (name, integers)
        node.input[0] = f"{name}{_GIVEN}"
        shape = [None] * integers.ndim
        model.graph.input.append(helper.make_tensor_value_info(node.input[0], TensorProto.UINT8, shape))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
    for index in recorded.keys() - outputs.keys():
        if not any(np.array_equal(recorded[index], integers) for _, integers in outputs.values()):
            raise AssertionError(f"{path} has no tensor {_QUANTIZED}_{index}, and no equal one")
    return model, outputs


def _take_regions_from_outside(graph: Any, regions: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Make each pooling of a graph read its regions from an input, and return these inputs.

    The graph's own regions come from NMS, which a last digit decides: then all regions behind it would be others.
    """
    from onnx import TensorProto, helper

    poolers = [node for node in graph.node if node.op_type == "RoiAlign"]
    if len(poolers) != len(regions):
        raise AssertionError("the exported network and the simulation do not pool regions equally often")
    given: dict[str, NDArray[Any]] = {}
    for index, (node, boxes) in enumerate(zip(poolers, regions, strict=True)):
        node.input[1], node.input[2] = f"regions_{index}{_GIVEN}", f"indices_{index}{_GIVEN}"
        graph.input.append(helper.make_tensor_value_info(node.input[1], TensorProto.FLOAT, [None, 4]))
        graph.input.append(helper.make_tensor_value_info(node.input[2], TensorProto.INT64, [None]))
        given |= {node.input[1]: boxes, node.input[2]: np.zeros(len(boxes), np.int64)}
    return given
