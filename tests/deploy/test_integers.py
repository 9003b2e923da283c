"""Detectors in integers: each tensor is the simulation's, all layers run in integers, and faults are found."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.deploy.cpu import NEEDS_VNNI
from support.deploy.integers import (
    SCHEME,
    IntegerDetector,
    calibration_batches,
    check_images,
    count_kernels,
    optimize,
    to_pixels,
)
from support.detect.configs import random_images

from ssql_det.core.errors import UserError
from ssql_det.deploy import integer_graph
from ssql_det.deploy.agreement import compare_detectors
from ssql_det.deploy.detector import Detector
from ssql_det.deploy.export import make_integers
from ssql_det.detect import detector_points
from ssql_det.detect.evaluation_data import RoleImages
from ssql_det.detect.quantize import quantize_detector
from ssql_det.detect.quantized_evaluation import QuantizationSettings, calibrate_detector
from ssql_det.quant import Bits, Calibration, Quantization, Scheme

pytestmark = pytest.mark.slow
WIDTHS = {"8": 0.999, "4": 0.995, "2w4a": 0.99}  # the least share of each tensor's elements that are the simulation's
CASES = [("C4", "8"), ("C4", "4"), pytest.param("FPN with masks", "2w4a", marks=NEEDS_VNNI)]
FLOAT_KERNELS = {"Conv", "FusedConv", "ConvTranspose", "MatMul", "Gemm", "FusedGemm", "FusedMatMul", "NhwcFusedConv"}
# of the narrow detectors: convs and products; sums of blocks and of the FPN; products whose result is float
KERNELS = {
    "C4": {"QLinearConv": 15, "QLinearAdd": 4, "MatMulIntegerToFloat": 2},
    "FPN with masks": {"QLinearConv": 39, "QLinearAdd": 7, "MatMulIntegerToFloat": 4},
}


# quantized as the tensor of another point, on its grid
SAME = {"proposal_generator.rpn_head.anchor_deltas:input", "roi_heads.box_predictor.bbox_pred:input"}

FLOAT_RESULTS = {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"}


@pytest.fixture(scope="module")
def get_detector(tmp_path_factory):
    """A function that returns a detector of a kind at a bit-width, made when it is first needed."""
    made = {}

    def get(kind, bits):
        if (kind, bits) not in made:
            made[kind, bits] = IntegerDetector(tmp_path_factory.mktemp("integers") / "d.onnx", kind, bits)
        return made[kind, bits]

    return get


# ---- against the simulation


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_each_quantized_tensor_is_that_of_the_simulation(kind, bits, get_detector):
    detector = get_detector(kind, bits)
    report = detector.check()
    assert report.is_close
    points = {point.key for point in detector.quantization.points if not point.is_weight}
    assert points - {each.point for each in report.tensors} == SAME
    assert {*report.result_differences} == FLOAT_RESULTS
    assert max(report.result_differences.values()) < 1e-5
    for each in report.tensors:
        assert each.further == 0, each
        assert each.equal >= WIDTHS[bits] * each.elements, each
        assert each.elements > 0


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_all_multiply_adds_run_in_integers(kind, bits, get_detector, tmp_path):
    detector = get_detector(kind, bits)
    coverage = detector.check(check_images()[:1]).coverage
    assert (coverage.share, coverage.float_layers) == (1, {})
    kernels, layers = count_kernels(detector.optimize(tmp_path)), detector.count_layers()
    assert not FLOAT_KERNELS & {*kernels}
    assert {name: kernels[name] for name in KERNELS[kind]} == KERNELS[kind]
    assert kernels["QLinearConv"] == layers["Conv2d"] + layers["ConvTranspose2d"]
    assert kernels["MatMulIntegerToFloat"] == layers["Linear"]
    assert coverage.macs > 10**8


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_what_lies_between_layers_runs_in_integers(kind, bits, get_detector, tmp_path):
    graph = get_detector(kind, bits).optimize(tmp_path)
    producers = {output: node.op_type for node in graph.node for output in node.output}
    sources = {"QLinearConv", "QLinearAdd", "Clip", "NhwcMaxPool", "MaxPool", "Transpose", "Resize"}
    for node in graph.node:
        if node.op_type in ("NhwcMaxPool", "Resize", "DepthToSpace"):
            assert producers[node.input[0]] in sources


def test_what_is_compared_runs_in_the_same_kernels(get_detector, tmp_path, monkeypatch):
    """Each part of the graph gets its tensors from outside, but is fused as in the file."""
    detector, opened = get_detector("C4", "4"), []
    make_session = integer_graph.make_session

    def open_and_keep(model, options):
        opened.append(model)
        return make_session(model, options)

    monkeypatch.setattr(integer_graph, "make_session", open_and_keep)
    detector.check(check_images()[:1])
    taken_apart = next(each for each in opened if isinstance(each, bytes))
    kernels = count_kernels(optimize(taken_apart, tmp_path))
    assert {name: kernels[name] for name in KERNELS["C4"]} == KERNELS["C4"]


@NEEDS_VNNI
def test_detections_are_those_of_the_simulation(get_detector):
    detector = get_detector("FPN with masks", "2w4a")
    batches = [[inputs] for inputs in random_images(3, seed=8)]
    with detector.quantization.at(detector.bits):
        found = compare_detectors(Detector(detector.path, threads=1), detector.model, batches)
    assert found.detections > 30
    assert found.unmatched <= 0.3 * found.detections  # of random weights, whose scores are close together
    assert found.score_difference < 0.02


# ---- other quantizations


def quantize_with(scheme, bits, path):
    def quantize(cfg, model):
        calibration = Calibration(4, reconstruction_images=4)
        settings = QuantizationSettings("all", calibration, Scheme.parse(f"{scheme}, placement=integer"))
        reconstruction = [[inputs] for inputs in random_images(4, seed=9)]
        images = RoleImages(calibration_batches(), reconstruction, [])
        quantize_detector(cfg, model, [bits], settings, path, images)
        return Quantization.load(path, model)

    return quantize


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("weight=brecq:5, act=lsq, norms=matched, biases=corrected", "2w4a"),
        ("weight=mse, act=percentile:99.9, norms=re-estimated, tune=2", "3w5a"),
    ],
)
def test_a_repaired_quantization_of_a_file(scheme, bits, tmp_path):
    quantize = quantize_with(scheme, Bits.parse(bits) if "w" in bits else Bits(4, 4), tmp_path / "q.safetensors")
    detector = IntegerDetector(tmp_path / "d.onnx", "C4", bits, quantize=quantize)
    report = detector.check()
    assert report.is_close
    assert all(each.equal >= 0.99 * each.elements for each in report.tensors)
    assert report.coverage.share == 1
    assert Detector(detector.path).metadata.scheme == str(detector.quantization.scheme)


@NEEDS_VNNI
def test_a_transposed_conv_of_a_quantization_from_a_file_with_and_without_regions(tmp_path):
    def load(cfg, model):
        quantization = Quantization(model, detector_points(model, "all", "integer"), SCHEME)
        calibrate_detector(quantization, calibration_batches())
        quantization.save(tmp_path / "q.safetensors")
        return Quantization.load(tmp_path / "q.safetensors", model)

    keys = {"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 24}
    detector = IntegerDetector(tmp_path / "d.onnx", "C4 with masks", "4", quantize=load, **keys)
    report = detector.check()
    assert report.is_close
    assert report.coverage.float_layers == {}
    assert all(each.elements for each in report.tensors)
    too_small = torch.full((20, 23, 3), 90, dtype=torch.uint8)
    report = detector.check([too_small])
    assert report.is_close
    empty = {each.point for each in report.tensors if not each.elements}
    assert {"roi_heads.res5.0:input", "roi_heads.mask_head.deconv:input"} <= empty
    assert len(Detector(detector.path).detect_resized(too_small.numpy())) == 0


def test_mixed_bit_widths_and_what_a_scope_leaves_out(tmp_path):
    """What is left out stays float and is named."""
    overrides = {"*res3*": Bits(3, 6), "*stem*": Bits(8, 8), "roi_heads.res5.*": Bits(2, 3)}
    detector = IntegerDetector(tmp_path / "d.onnx", "C4", "5", overrides, scope="backbone")
    report = detector.check()
    rpn = [f"proposal_generator.rpn_head.{name}" for name in ("conv", "objectness_logits", "anchor_deltas")]
    predictor = [f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred")]
    assert report.is_close
    assert {*report.coverage.float_layers} == {*rpn, *predictor}
    assert report.coverage.share == pytest.approx(1 - sum(report.coverage.float_layers.values()) / report.coverage.macs)
    assert 0.5 < report.coverage.share < 1
    assert [*report.coverage.float_layers.values()] == sorted(report.coverage.float_layers.values(), reverse=True)
    metadata = Detector(detector.path).metadata
    assert metadata.scope == "backbone"
    assert metadata.bits.startswith("5w5a")
    assert "3w6a" in metadata.bits
    greatest = {
        int(numpy_helper.to_array(each))
        for each in onnx.load(detector.path).graph.initializer
        if each.data_type == onnx.TensorProto.UINT8 and not each.dims
    }
    assert {7, 31, 63} <= greatest  # of activations of 3, 5 and 6 bits


# ---- the file


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_the_file_is_valid(kind, bits, get_detector):
    onnx.checker.check_model(get_detector(kind, bits).path, full_check=True)


def test_the_metadata_say_how_it_was_quantized(get_detector):
    metadata = Detector(get_detector("FPN with masks", "2w4a").path).metadata
    assert (metadata.bits, metadata.scheme, metadata.scope) == ("2w4a", "placement=integer", "all")


def test_exporting_again_gives_the_same_file_and_leaves_the_detector_as_it_was(get_detector, tmp_path):
    detector = get_detector("C4", "4")
    model = detector.model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grad = [each.requires_grad for each in model.parameters()]
    detector.export(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == detector.path.read_bytes()
    assert model.training
    assert [each.requires_grad for each in model.parameters()] == grad
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert all("forward" not in vars(each) for each in model.modules())
    model.eval()


@pytest.mark.parametrize(
    ("kind", "bits", "most"), [("C4", "8", 0.27), ("C4", "4", 0.15), ("FPN with masks", "2w4a", 0.09)]
)
def test_the_weights_take_the_room_of_their_bits(kind, bits, most, get_detector):
    detector = get_detector(kind, bits)
    initializers = onnx.load(detector.path).graph.initializer
    parameters = [each.numel() * each.element_size() for each in detector.model.parameters()]
    assert sum(numpy_helper.to_array(each).nbytes for each in initializers) <= most * sum(parameters)


def test_quantizations_without_integers_are_refused_before_a_file_is_written(get_detector, tmp_path):
    detector = get_detector("C4", "4")
    with pytest.raises(UserError, match="16w16a has no integer form"):
        make_integers(detector.quantization, Bits(16, 16), "all")


# ---- faults are found


def change_scales(graph, names):
    for name in ("scale", "bias_scale"):
        change(graph, names[name], lambda x: x * np.float32(1.05))


def forget_a_sign(graph, names):
    change(graph, names["scale"], np.abs)
    change(graph, names["bias_scale"], np.abs)


def move_bias(graph, names):
    """By two steps of the result, in the channel of the greatest bias."""
    scale = numpy_helper.to_array(find_initializer(graph, names["bias_scale"]))

    def add(bias):
        channel = (bias * scale).argmax()
        bias[channel] += int(names["two_steps"] / scale[channel])
        return bias

    change(graph, names["bias_integers"], add)


def shift_biases(graph, names):
    change(graph, names["bias_integers"], lambda bias: bias + 200)


def shift_zero_point(graph, names):
    quantize = find_quantize(graph, names["result"])
    zero_point = find_initializer(graph, quantize.input[2])
    copy = numpy_helper.from_array(numpy_helper.to_array(zero_point) + np.uint8(1), "shifted")
    graph.initializer.append(copy)
    quantize.input[2] = "shifted"


def change_a_weight(graph, names):
    def flip(packed):
        packed[::2] ^= 0x04  # of one weight in four
        return packed

    change(graph, f"{names['integers']}/packed", flip)


def find_initializer(graph, name):
    return next(each for each in graph.initializer if each.name == name)


def change(graph, name, compute):
    found = find_initializer(graph, name)
    found.CopyFrom(numpy_helper.from_array(compute(numpy_helper.to_array(found).copy()), name))


def find_quantize(graph, result):
    return next(node for node in graph.node if result in node.output)


LAYER, POINT = "backbone.res3.0.conv1", "backbone.res3.0.conv2:input"


@pytest.mark.parametrize(
    "fault",
    [
        *(change_scales, forget_a_sign, move_bias, change_a_weight),
        pytest.param(shift_zero_point, marks=NEEDS_VNNI, id="shift_zero_point"),
    ],
    ids=lambda each: each.__name__,
)
def test_a_fault_is_found_where_it_is(fault, get_detector, tmp_path):
    detector = get_detector("C4", "4")
    model = onnx.load(detector.path)
    (grid,) = (
        detector.quantization[point].get_qparams(4) for point in detector.quantization.points if point.key == POINT
    )
    names = {name: f"detector.{LAYER}.{name}" for name in ("integers", "scale", "bias_integers", "bias_scale")}
    names |= {"two_steps": 2 * grid.scale, "result": find_result(model.graph, names["integers"])}
    fault(model.graph, names)
    onnx.save(model, tmp_path / "faulty.onnx")
    report = detector.check(to_pixels(random_images(2, seed=5)), tmp_path / "faulty.onnx")
    assert not report.is_close
    assert [each.point for each in report.tensors if not each.is_close] == [POINT]
    assert report.to_dict()["agrees"] is False
    assert next(iter(report.to_dict()["tensors"])) == POINT


@NEEDS_VNNI
def test_a_layer_that_a_runtime_leaves_in_float_is_named(get_detector, tmp_path):
    """As it does if a bias has another unit than the products."""
    detector = get_detector("C4", "4")
    model = onnx.load(detector.path)
    change(model.graph, f"detector.{LAYER}.bias_scale", lambda scale: scale * np.float32(1.5))
    onnx.save(model, tmp_path / "unfused.onnx")
    coverage = detector.check(check_images()[:1], tmp_path / "unfused.onnx").coverage
    assert [*coverage.float_layers] == [LAYER]
    assert 0.9 < coverage.share < 1
    assert coverage.integer_macs == coverage.macs - coverage.float_layers[LAYER]


@pytest.mark.parametrize("fault", [change_scales, shift_biases], ids=lambda each: each.__name__)
@pytest.mark.parametrize("layer", sorted(FLOAT_RESULTS))
def test_a_fault_of_a_float_result_is_found(layer, fault, get_detector, tmp_path):
    detector = get_detector("C4", "4")
    model = onnx.load(detector.path)
    fault(model.graph, {name: f"detector.{layer}.{name}" for name in ("scale", "bias_integers", "bias_scale")})
    onnx.save(model, tmp_path / "faulty.onnx")
    report = detector.check(to_pixels(random_images(1, seed=5)), tmp_path / "faulty.onnx")
    assert not report.is_close
    assert all(each.is_close for each in report.tensors)
    assert [name for name, each in report.result_differences.items() if each > 1e-4] == [layer]
    assert report.to_dict()["result_difference"] == report.result_differences[layer]


def find_result(graph, weight):
    """The name of the integers that a conv's result is quantized to."""
    name = weight
    while True:
        node = next(each for each in graph.node if name in each.input)
        name = node.output[0]
        if node.op_type == "QuantizeLinear":
            return name
