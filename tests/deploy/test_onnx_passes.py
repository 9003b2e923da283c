"""Packed weights and kept grids: small graphs, run by onnxruntime before and after, and what it makes of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.deploy.cpu import NEEDS_VNNI

from ssql_det.deploy.onnx_passes import factor_integers, keep_grids, pack, pack_weights
from ssql_det.deploy.session import make_session, make_session_options

SCALE, ZERO_POINT = 0.25, 100
OTHER_SCALE = 0.3


def make_model(nodes, inputs, outputs, constants):
    """``inputs`` and ``outputs`` are types by name."""
    values = [
        [
            helper.make_tensor_value_info(name, kind, [None] * 4 if name in outputs else [1, 4, 6, 6])
            for name, kind in each
        ]
        for each in (inputs.items(), outputs.items())
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "by_hand", *values, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model, **inputs):
    return make_session(model.SerializeToString(), make_session_options()).run(None, inputs)


def optimize(model, folder):
    options = make_session_options()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    make_session(model.SerializeToString(), options)
    return onnx.load(options.optimized_model_filepath).graph


def list_operators(graph):
    return [node.op_type for node in graph.node]


# ---- weights of few bits


def draw(low, high, shape, step=1, seed=0):
    """Integers with both ends among them."""
    integers = np.random.default_rng(seed).integers(low, high + 1, shape) * step
    integers.flat[0], integers.flat[-1] = low * step, high * step
    return integers.astype(np.int8)


WEIGHTS = {
    "2 bits": (draw(-2, 1, (4, 4, 3, 3), 64), 2),
    "2 bits, not shifted": (draw(-2, 1, (4, 4, 3, 3)), 2),
    "3 bits": (draw(-4, 3, (4, 4, 3, 3), 32), 4),
    "4 bits": (draw(-8, 7, (4, 4, 3, 3), 16), 4),
    "2 bits, centred": (draw(-2, 1, (4, 4, 3, 3), 2) + np.int8(1), 2),
    "3 bits, centred": (draw(-4, 3, (4, 4, 3, 3), 2) + np.int8(1), 4),
    "4 bits, centred and shifted": (draw(-8, 7, (4, 4, 3, 3), 16) + np.int8(8), 4),
    "zeros": (np.zeros((4, 4, 3, 3), np.int8), 2),
    "one value": (np.full((4, 4, 1, 1), -128, np.int8), 2),
    "the ends alone": (np.array([-128, 127, 127, -128] * 4, np.int8).reshape(4, 4, 1, 1), 2),
    "4 of 8-bit integers": (np.array([-128, -43, 42, 127] * 4, np.int8).reshape(4, 4, 1, 1), 2),
    "an odd number, 2 bits": (draw(-2, 1, (3, 4, 1, 1)), 2),
    "an odd number, 4 bits": (draw(-8, 7, (1, 4, 3, 3)), 4),
    "one element": (np.array([[[[-7]]]], np.int8), 2),
}


def make_conv(weight):
    """A conv whose weight is dequantized."""
    channels = weight.shape[1]
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["floats"], axis=0),
        helper.make_node("Slice", ["x", "zero", "channels", "one"], ["sliced"]),
        helper.make_node("Conv", ["sliced", "floats"], ["y"]),
    ]
    constants = {
        "weight": weight,
        "scale": np.linspace(0.1, 0.2, len(weight), dtype=np.float32),
        "zero": np.array([0]),
        "one": np.array([1]),
        "channels": np.array([channels]),
    }
    return make_model(nodes, {"x": TensorProto.FLOAT}, {"y": TensorProto.FLOAT}, constants)


@NEEDS_VNNI
@pytest.mark.parametrize("name", WEIGHTS)
def test_packed_weights_are_the_same_when_a_runtime_has_opened_them(name, tmp_path):
    weight, bits = WEIGHTS[name]
    model = make_conv(weight)
    x = np.random.default_rng(1).standard_normal((1, 4, 6, 6), np.float32)
    (expected,) = run(model, x=x)
    pack_weights(model)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert "weight" not in stored
    assert stored["weight/packed"].dtype == np.uint8
    assert stored["weight/packed"].size == -(-weight.size * bits // 8)
    onnx.checker.check_model(model, full_check=True)
    operators = list_operators(optimize(model, tmp_path))
    assert "Conv" in operators
    assert not {"Gather", "Reshape", "Cast"} & {*operators}
    model.graph.output.append(helper.make_tensor_value_info("weight", TensorProto.INT8, weight.shape))
    found, unpacked = run(model, x=x)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, weight)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "weight",
    [draw(-128, 127, (4, 4, 3, 3)), draw(-16, 15, (4, 4, 3, 3), 8), draw(-64, 63, (4, 4, 3, 3), 2)],
    ids=["8 bits", "5 bits", "7 bits, shifted"],
)
def test_other_weights_stay_bytes(weight):
    model = make_conv(weight)
    before = model.SerializeToString()
    pack_weights(model)
    assert model.SerializeToString() == before


def test_only_int8_that_is_dequantized_is_packed():
    nodes = [
        helper.make_node("DequantizeLinear", ["bias", "scale"], ["floats"]),
        helper.make_node("Cast", ["few"], ["others"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["others", "floats"], ["factors"]),
        helper.make_node("Mul", ["x", "factors"], ["y"]),
    ]
    constants = {"bias": np.int32([3]), "scale": np.float32(0.5), "few": np.int8([1])}
    model = make_model(nodes, {"x": TensorProto.FLOAT}, {"y": TensorProto.FLOAT}, constants)
    before = model.SerializeToString()
    pack_weights(model)
    assert model.SerializeToString() == before


def test_a_weight_that_two_layers_read_is_packed_once():
    weight = draw(-2, 1, (4, 4, 3, 3), 64)
    model = make_conv(weight)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["again"], axis=0),
        helper.make_node("Conv", ["x", "again"], ["z"]),
    ]
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    expected = run(model, x=np.ones((1, 4, 6, 6), np.float32))
    pack_weights(model)
    assert list_operators(model.graph).count("Gather") == 1
    np.testing.assert_array_equal(run(model, x=np.ones((1, 4, 6, 6), np.float32)), expected)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9])
def test_packed_bytes_hold_their_integers_lowest_bits_first(bits, size):
    integers = np.random.default_rng(size).integers(0, 2**bits, size).astype(np.uint8)
    number = int.from_bytes(pack(integers, bits).tobytes(), "little")
    assert [number >> bits * index & 2**bits - 1 for index in range(size)] == integers.tolist()
    assert number >> bits * size == 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_factors_give_the_integers_back(name):
    weight, bits = WEIGHTS[name]
    few, factor, offset, found = factor_integers(weight)
    assert found == bits
    assert few.min() == 0
    np.testing.assert_array_equal(few.astype(int) * factor + offset, weight)


# ---- grids


def make_selection(operator):
    if operator == "MaxPool":
        return helper.make_node("MaxPool", ["floats"], ["selected"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    if operator == "DepthToSpace":
        return helper.make_node("DepthToSpace", ["floats"], ["selected"], blocksize=2)
    mode, rounding = operator.partition(" ")[2], {"coordinate_transformation_mode": "asymmetric"}
    nearest = {"nearest_mode": "floor"} if mode == "nearest" else {}
    return helper.make_node("Resize", ["floats", "", "sides"], ["selected"], mode=mode, **rounding, **nearest)


def make_grid_model(operator, *readers, source="DequantizeLinear"):
    """A quantized tensor (or floats), a selection of it, and what reads the selection."""
    first = helper.make_node(
        source, ["x", *(["scale", "zero_point"] if source == "DequantizeLinear" else [])], ["floats"]
    )
    constants = {
        "scale": np.float32(SCALE),
        "zero_point": np.uint8(ZERO_POINT),
        "other_scale": np.float32(OTHER_SCALE),
        "sides": np.float32([1, 1, 2, 2]),
    }
    kinds = {"y": TensorProto.FLOAT, "z": TensorProto.UINT8, "selected": TensorProto.FLOAT}
    outputs = {name: kinds[name] for node in readers for name in node.output if name in kinds} or {
        "selected": TensorProto.FLOAT
    }
    kind = TensorProto.UINT8 if source == "DequantizeLinear" else TensorProto.FLOAT
    return make_model([first, make_selection(operator), *readers], {"x": kind}, outputs, constants)


def negate():
    return helper.make_node("Neg", ["selected"], ["y"])


def quantize(scale="other_scale"):
    return helper.make_node("QuantizeLinear", ["selected", scale, "zero_point"], ["z"])


def draw_image():
    return np.random.default_rng(0).integers(0, 256, (1, 4, 6, 6), np.uint8)


SELECTIONS = ("MaxPool", "Resize nearest", "DepthToSpace")


@pytest.mark.parametrize("operator", SELECTIONS)
def test_a_selection_of_integers_is_computed_in_integers_with_equal_values(operator, tmp_path):
    model = make_grid_model(operator, negate())
    expected = run(model, x=draw_image())
    keep_grids(model)
    onnx.checker.check_model(model, full_check=True)
    name = operator.split()[0]
    before, kept, _, after, _ = model.graph.node
    assert [kept.op_type, after.op_type] == [name, "DequantizeLinear"]
    assert before.input[1:] == after.input[1:]
    np.testing.assert_array_equal(run(model, x=draw_image()), expected)
    graph = optimize(model, tmp_path)
    (selection,) = (node for node in graph.node if node.op_type == name)
    assert selection.input[0] == "x"  # the integers
    assert list_operators(graph) == [name, "DequantizeLinear", "Neg"]


@pytest.mark.parametrize("operator", SELECTIONS)
def test_a_selection_that_is_an_output_keeps_its_name(operator):
    model = make_grid_model(operator)
    expected = run(model, x=draw_image())
    keep_grids(model)
    assert list_operators(model.graph)[1:] == [operator.split()[0], "QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_array_equal(run(model, x=draw_image()), expected)


def test_a_selection_of_a_selection():
    second = helper.make_node("DepthToSpace", ["selected"], ["shuffled"], blocksize=2)
    model = make_grid_model("MaxPool", second, helper.make_node("Neg", ["shuffled"], ["y"]))
    expected = run(model, x=draw_image())
    keep_grids(model)
    assert list_operators(model.graph).count("QuantizeLinear") == 2
    np.testing.assert_array_equal(run(model, x=draw_image()), expected)


def test_where_only_another_quantization_reads_it_nothing_changes():
    model = make_grid_model("MaxPool", quantize())
    before = model.SerializeToString()
    keep_grids(model)
    assert model.SerializeToString() == before


def test_where_another_quantization_and_a_layer_read_it_the_values_are_equal():
    model = make_grid_model("MaxPool", quantize(), negate())
    expected = run(model, x=draw_image())
    keep_grids(model)
    assert list_operators(model.graph).count("QuantizeLinear") == 2
    for found, values in zip(run(model, x=draw_image()), expected, strict=True):
        np.testing.assert_array_equal(found, values)


def test_floats_have_no_grid():
    model = make_grid_model("MaxPool", negate(), source="Relu")
    before = model.SerializeToString()
    keep_grids(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_new_values_between_those_of_a_grid_are_not_rounded_to_it(mode):
    model = make_grid_model(f"Resize {mode}", negate())
    before = model.SerializeToString()
    keep_grids(model)
    assert model.SerializeToString() == before
