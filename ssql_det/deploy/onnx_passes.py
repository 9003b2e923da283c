"""Changes of an exported graph, after which runtimes compute more of it in integers, and weights take less room."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SELECTIONS = ("MaxPool", "DepthToSpace")
_NARROW_BITS = (2, 4)


def keep_grids(model: Any) -> None:
    """Quantize the results of max-pooling, upsampling and shuffling on the grid of their input, which changes no value.

    Between a DequantizeLinear and such a QuantizeLinear a runtime applies them to the integers.
    """
    from onnx import helper

    producers: dict[str, Any] = {output: node for node in model.graph.node for output in node.output}
    readers = collections.defaultdict(set)
    for node in model.graph.node:
        for name in node.input:
            readers[name].add(node.op_type)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        source = producers.get(node.input[0]) if _is_selection(node) else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        result, grid = node.output[0], source.input[1:]
        if readers[result] != {"QuantizeLinear"}:  # else it is quantized on another grid anyway
            node.output[0] = f"{result}/float"
            nodes.append(helper.make_node("QuantizeLinear", [node.output[0], *grid], [f"{result}/integers"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{result}/integers", *grid], [result]))
            producers[result] = nodes[-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _is_selection(node: Any) -> bool:
    """Whether each value of a node's result is one of its input's."""
    if node.op_type == "Resize":  # nearest is the default
        return all(each.s == b"nearest" for each in node.attribute if each.name == "mode")
    return node.op_type in _SELECTIONS


def pack_weights(model: Any) -> None:
    """Store weights of few bits in bytes, two or four in each, where ``integers = factor * q + offset`` with few-bit
    ``q``.

    Runtimes look the 8-bit integers of each byte up in a table, once, when they open the file. ONNX has a type of 2
    bits, but only in opsets whose ``RoiAlign`` onnxruntime does not have, and one of 4 bits would be a second way. The
    bits are not shifted: OpenVINO computes ``BitShift`` as a division of floats, which it rounds.
    """
    from onnx import TensorProto, helper, numpy_helper

    initializers = {each.name: each for each in model.graph.initializer}
    names = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    nodes: list[Any] = []

    def add(name: str, value: Any) -> str:
        if name not in initializers:
            initializers[name] = numpy_helper.from_array(np.asarray(value), name)
            model.graph.initializer.append(initializers[name])
        return name

    def compute(operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    for name in sorted(names & initializers.keys()):
        integers = numpy_helper.to_array(initializers[name])
        found = factor_integers(integers) if integers.dtype == np.int8 else None
        if found is None:
            continue
        few, factor, offset, bits = found
        model.graph.initializer.remove(initializers[name])
        packed = add(f"{name}/packed", pack(few, bits))
        table = add(f"packing/table/{factor}/{offset}/{bits}", make_table(factor, offset, bits))
        indices = compute("Cast", packed, output=f"{name}/indices", to=TensorProto.INT32)
        unpacked = compute("Gather", table, indices, output=f"{name}/unpacked")
        flat = compute("Reshape", unpacked, add("packing/all", np.array([-1])), output=f"{name}/flat")
        ends = add("packing/start", np.array([0])), add(f"{name}/end", np.array([few.size]))
        whole = compute("Slice", flat, *ends, output=f"{name}/whole")
        compute("Reshape", whole, add(f"{name}/shape", np.array(few.shape)), output=name)
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])


def make_table(factor: int, offset: int, bits: int) -> NDArray[np.int8]:
    """The integers [256, N] that each byte of :func:`pack` holds, as 8-bit integers.

    >>> make_table(64, -96, bits=2)[135].tolist()
    [96, -32, -96, 32]
    """
    digits = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (2**bits - 1)
    return (factor * digits + offset).astype(np.int8)  # those that do not fit do not occur


def factor_integers(integers: NDArray[np.int8]) -> tuple[NDArray[np.uint8], int, int, int] | None:
    """``q`` from 0, ``factor``, ``offset`` and bits with ``integers = factor * q + offset``, for the fewest bits of 2
    and 4; ``None`` if 4 bits do not suffice.

    >>> few, factor, offset, bits = factor_integers(np.array([-96, -32, 32, 96], np.int8))
    >>> few.tolist(), factor, offset, bits
    ([0, 1, 2, 3], 64, -96, 2)
    """
    wide = integers.astype(np.int64)
    values = np.unique(wide)
    factor = int(np.gcd.reduce(np.diff(values))) if len(values) > 1 else 1
    few = (wide - values[0]) // factor
    bits = next((bits for bits in _NARROW_BITS if few.max() < 2**bits), None)
    return None if bits is None else (few.astype(np.uint8), factor, int(values[0]), bits)


def pack(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers below ``2**bits`` in bytes, the first one in the lowest bits.

    >>> pack(np.array([3, 1, 0, 2, 1], np.uint8), 2).tolist()
    [135, 1]
    """
    per_byte = 8 // bits
    flat = np.pad(integers.reshape(-1), (0, -integers.size % per_byte)).reshape(-1, per_byte)
    shifted = flat << np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(shifted, axis=1)
