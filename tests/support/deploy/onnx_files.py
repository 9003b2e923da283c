"""Tiny ONNX files that keep the contract of exported ones: constants, or simple functions of the image."""

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ssql_det.deploy.metadata import METADATA_KEY, InputRule, ModelMetadata

METADATA = ModelMetadata(
    kind="detector",
    classes=("red", "green", "blue"),
    category_ids=(5, 7, 9),
    input=InputRule("RGB", min_size=32, max_size=64),
    weights={"file": "w.pth", "sha256": "0" * 64},
    config="by_hand",
    versions={"ssql_det": "0.1.0"},
)
TYPES = {"boxes": TensorProto.FLOAT, "scores": TensorProto.FLOAT, "classes": TensorProto.INT64}
ONNX_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
CLASS_COUNT = len(METADATA.classes)


def write_constant_detector(path, outputs, metadata=METADATA):
    """A detector that finds the same in every image; ``outputs`` are arrays by name."""
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in outputs.items()
    ]
    kinds = {name: ONNX_TYPES.get(array.dtype, TensorProto.DOUBLE) for name, array in outputs.items()}
    return write_model(path, nodes, kinds, metadata)


def write_colour_detector(path, metadata=METADATA, has_masks=False):
    """A detector that finds one object, as large as the image: its class is the strongest channel of the network's
    input, its score the mean of that channel, from 0 to 1, and its mask the left half."""

    def constant(name, array):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))

    nodes = [
        constant("zero", np.array([0], np.int64)),
        constant("one", np.array([1], np.int64)),
        constant("two", np.array([2], np.int64)),
        constant("axes", np.array([0, 1], np.int64)),
        constant("most", np.array(255, np.float32)),
        constant("origin", np.zeros(2, np.float32)),
        constant("box_shape", np.array([1, 4], np.int64)),
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "most"], ["shares"]),
        helper.make_node("TopK", ["shares", "one"], ["scores", "classes"]),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["height"]),
        helper.make_node("Slice", ["shape", "one", "two"], ["width"]),
        helper.make_node("Concat", ["width", "height"], ["corner"], axis=0),
        helper.make_node("Cast", ["corner"], ["far"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["origin", "far"], ["flat"], axis=0),
        helper.make_node("Reshape", ["flat", "box_shape"], ["boxes"]),
    ]
    kinds = dict(TYPES)
    if has_masks:
        nodes.append(constant("masks", left_half()))
        kinds["masks"] = TensorProto.FLOAT
    return write_model(path, nodes, kinds, metadata)


def write_backbone(path):
    nodes = [helper.make_node("Cast", ["image"], ["features"], to=TensorProto.FLOAT)]
    metadata = replace(METADATA, kind="backbone", classes=(), category_ids=())
    return write_model(path, nodes, {"features": TensorProto.FLOAT}, metadata)


def write_model(path, nodes, output_types, metadata, input_type=TensorProto.UINT8, input_name="image"):
    """``metadata`` may be ``None``, or the text itself."""
    image = helper.make_tensor_value_info(input_name, input_type, ["height", "width", 3])
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in output_types.items()]
    graph = helper.make_graph(nodes, "by_hand", [image], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else metadata.to_json()
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def left_half():
    """The mask probabilities of one object that fills the left half of its box."""
    masks = np.zeros((1, 28, 28), np.float32)
    masks[:, :, :14] = 1
    return masks


def make_outputs(count, size=(64, 64), mask_side=None, seed=0):
    """Random outputs of a detector; some boxes are empty."""
    random = np.random.default_rng(seed)
    height, width = size
    corners = random.uniform(0, 1, (count, 2, 2)).astype(np.float32) * np.array([width, height], np.float32)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    boxes[::7, 2] = boxes[::7, 0]
    outputs = {
        "boxes": boxes,
        "scores": np.sort(random.uniform(0, 1, count).astype(np.float32))[::-1].copy(),
        "classes": random.integers(0, CLASS_COUNT, count),
    }
    if mask_side:
        outputs["masks"] = random.uniform(0, 1, (count, mask_side, mask_side)).astype(np.float32)
    return outputs
