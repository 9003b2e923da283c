"""An exported file in integers, taken apart: each part gets its tensors from outside, so that a difference stays where
it arises.

A part ends where a tensor is quantized, or in the float result of a layer that no point quantizes. It begins with
quantized tensors, or with pooled regions: those of the graph come from NMS, which a last digit decides, and then all
regions behind it would be others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssql_det.deploy.session import INPUT_NAME, make_session, make_session_options

OWNERS = ("detector", "backbone")  # the names of the network in its graph
_QUANTIZED = "quantize_dequantize"  # the operator's name, from which torch makes those of its results
_GIVEN = "/given"  # behind the name of a tensor that comes from outside

Array = NDArray[Any]


@dataclass(frozen=True)
class Recording:
    """What a pass of the simulated network had, in its order."""

    integers: list[tuple[str, Array]] = field(default_factory=list)  # with the keys of their points
    regions: list[Array] = field(default_factory=list)  # boxes [N, 4] that were pooled
    results: dict[str, list[Array]] = field(default_factory=dict)  # of layers, that no point quantizes, by path


class GraphParts:
    """The parts of a file's graph, which :meth:`run` runs on what a pass of the simulation had."""

    def __init__(self, path: Path, keys: Sequence[str], example: Recording) -> None:
        """``keys`` are those of :func:`ssql_det.deploy.integers.computing_integers`: for each quantization of the graph
        the point, or "" if it has none of its own."""
        import onnx

        self._path, self._keys = path, [key for key in keys if key]
        self.indices = [index for index, key in enumerate(keys) if key]  # of the recorded integers
        model = onnx.load(path)
        self._graph = model.graph
        del self._graph.output[:]
        self._integers = dict(self._cut_integers(example))
        self._regions = list(self._cut_regions())
        self._results = {layer: list(self._find_results(layer)) for layer in example.results}
        for name in (name for names in self._results.values() for name in names):
            self._add_value("output", name, onnx.TensorProto.FLOAT, None)
        self._session = make_session(model.SerializeToString(), make_session_options())

    def run(self, recording: Recording, image: Tensor) -> tuple[dict[int, Array], dict[str, list[Array]]]:
        """The integers of each part, by index of the recording's, and the float results of layers."""
        recorded = self._index(recording)
        self._check_same(recorded, recording)
        given = {f"{name}{_GIVEN}": recorded[index] for index, name in self._integers.items()}
        for (boxes, indices), regions in zip(self._regions, recording.regions, strict=True):
            given |= {boxes: regions, indices: np.zeros(len(regions), np.int64)}
        names = [*self._integers.values(), *(name for each in self._results.values() for name in each)]
        found = iter(self._session.run(names, {INPUT_NAME: image.numpy(), **given}))
        integers = {index: next(found) for index in self._integers}
        return integers, {layer: [next(found) for _ in each] for layer, each in self._results.items()}

    def _index(self, recording: Recording) -> dict[int, Array]:
        """The recorded integers by the index of their quantization in the graph."""
        if self._keys != [key for key, _ in recording.integers]:
            raise AssertionError("the exported network and the simulation do not pass the same points")
        return {index: integers for index, (_, integers) in zip(self.indices, recording.integers, strict=True)}

    def _check_same(self, recorded: Mapping[int, Array], recording: Recording) -> None:
        for index in recorded.keys() - self._integers.keys():
            if not any(np.array_equal(recorded[index], recorded[other]) for other in self._integers):
                raise AssertionError(f"{self._path} has no tensor {_QUANTIZED}_{index}, and no equal one")
        counts = [len(self._regions), *map(len, self._results.values())]
        if counts != [len(recording.regions), *map(len, recording.results.values())]:
            raise AssertionError(f"{self._path} and the simulation do not call the same layers equally often")

    def _cut_integers(self, example: Recording) -> Iterator[tuple[int, str]]:
        """Make each DequantizeLinear read an input, and each QuantizeLinear an output: its name, by index."""
        from onnx import TensorProto

        dequantizers = {node.output[0]: node for node in self._graph.node if node.op_type == "DequantizeLinear"}
        for index, integers in self._index(example).items():
            node = dequantizers.get(f"{_QUANTIZED}_{index}" if index else _QUANTIZED)
            # The exporter merges equal quantizations of one tensor, or their integers alone.
            if node is None or node.input[0].endswith(_GIVEN):
                continue
            name = node.input[0]
            node.input[0] = f"{name}{_GIVEN}"
            self._add_value("input", node.input[0], TensorProto.UINT8, [None] * integers.ndim)
            self._add_value("output", name, TensorProto.UINT8, [None] * integers.ndim)
            yield index, name

    def _cut_regions(self) -> Iterator[tuple[str, str]]:
        """Make each pooling read its regions, and the indices of their images, from inputs: their names."""
        from onnx import TensorProto

        for index, node in enumerate(each for each in self._graph.node if each.op_type == "RoiAlign"):
            node.input[1], node.input[2] = f"regions_{index}{_GIVEN}", f"indices_{index}{_GIVEN}"
            self._add_value("input", node.input[1], TensorProto.FLOAT, [None, 4])
            self._add_value("input", node.input[2], TensorProto.INT64, [None])
            yield node.input[1], node.input[2]

    def _find_results(self, layer: str) -> Iterator[str]:
        """The names of a layer's results, one for each call."""
        weights, biases = (set(self._find_dequantized(layer, name)) for name in ("integers", "bias_integers"))
        for node in self._graph.node:
            if weights & {*node.input}:
                (name,) = node.output
                with_bias = (each for each in self._graph.node if name in each.input and biases & {*each.input})
                yield next((each.output[0] for each in with_bias), name)

    def _find_dequantized(self, layer: str, name: str) -> Iterator[str]:
        sources = [f"{owner}.{layer}.{name}" for owner in OWNERS]
        return (node.output[0] for node in self._graph.node if {*node.input[:1]} & {*sources})

    def _add_value(self, kind: str, name: str, element_type: int, shape: Sequence[int | None] | None) -> None:
        from onnx import helper

        getattr(self._graph, kind).append(helper.make_tensor_value_info(name, element_type, shape))
