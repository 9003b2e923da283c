"""Calibration, re-estimated norms, and files of quantizations."""

import copy
import json
import struct

import pytest
import torch
import torchvision
from support.networks import CifarResNet, PlainNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.tensor_files import read_safetensors, write_safetensors
from ssql_det.quant import (
    Bits,
    Calibration,
    Quantization,
    QuantPoint,
    Scheme,
    Side,
    evaluate_at_bit_width,
    evaluate_at_bit_widths,
)
from ssql_det.quant.quantization_file import check_same_points

SCHEMES = ("minmax", "weight=centred, act=mse", "act=percentile:99, norms=re-estimated")
FOUR = Bits(4, 4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CifarResNet()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 16, 16, generator=generator) for _ in range(4)]


def calibrate(model, images, scheme="minmax", **options):
    quantization = Quantization(model, scheme=Scheme.parse(scheme))
    quantization.calibrate(images, **options)
    return quantization


def get_observations(quantization):
    """The observed range and sums of each point."""
    observers = {point.key: quantization[point].observer for point in quantization.points}
    return {
        key: (
            None if each.min_val is None else [float(bound) for bound in each.range],
            None if each.sums is None else each.sums.tolist(),
        )
        for key, each in observers.items()
        if each is not None
    }


def test_calibration_observes_every_batch_in_evaluation_mode_and_restores_training_mode(model, batches):
    model.train()
    model.layer1[0].bn1.eval()
    flags = [module.training for module in model.modules()]
    former = copy.deepcopy(model.state_dict())
    quantization = calibrate(model, batches)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, former[name]) for name, tensor in model.state_dict().items())

    model.eval()
    by_hand = [model.layer1(torch.relu(model.bn1(model.conv1(x)))).aminmax() for x in batches]
    output = quantization[QuantPoint("layer1.0", Side.OUTPUT)].observer.range
    assert output == (min(each.min for each in by_hand), max(each.max for each in by_hand))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_merged_shards_equal_one_calibration(model, batches, scheme):
    whole, half, rest = (calibrate(model, part, scheme) for part in (batches, batches[:1], batches[1:]))
    assert get_observations(half) != get_observations(whole)
    half.merge(rest)
    assert get_observations(half) == get_observations(whole)
    with pytest.raises(ValueError, match="same points and scheme"):
        half.merge(calibrate(model, batches, "act=mse:3"))


def test_batches_can_be_limited_tuples_or_passed_to_forward(model, batches):
    first = get_observations(calibrate(model, batches[:1]))
    assert get_observations(calibrate(model, batches, num_batches=1)) == first
    assert get_observations(calibrate(model, [(batches[0], torch.zeros(2))])) == first
    with_forward = calibrate(model, [{"image": batches[0]}], forward=lambda network, batch: network(batch["image"]))
    assert get_observations(with_forward) == first


def test_calibrating_again_replaces_observations(model, batches):
    quantization = calibrate(model, batches)
    quantization.calibrate(batches[:1])
    assert get_observations(quantization) == get_observations(calibrate(model, batches[:1]))


# ---- norms ---------------------------------------------------------------------------------------------------------


def test_norms_are_re_estimated_in_the_quantized_network_at_each_width(model, batches):
    own = copy.deepcopy(model.state_dict())
    quantization = calibrate(model, batches, "norms=re-estimated")
    with (
        pytest.raises(UserError, match="norms=re-estimated: norms and biases are not computed at 4w4a yet"),
        quantization.at(FOUR),
    ):
        pass
    found = dict(
        evaluate_at_bit_widths(quantization, [FOUR, Bits(2, 4)], lambda _: model.eval()(batches[0]), None, batches)
    )
    reference = copy.deepcopy(model)
    reference.bn1.reset_running_stats()
    reference.bn1.momentum = None
    reference.bn1.train()
    plain = Quantization(reference)
    plain.calibrate(batches[:1])  # it quantizes only weights
    with plain.at(Bits(4, None)), torch.no_grad():
        for x in batches:
            reference.bn1(reference.conv1(x))
    statistics = quantization.repairs["4w4a"].tensors
    torch.testing.assert_close(statistics["bn1.running_mean"], reference.bn1.running_mean)
    torch.testing.assert_close(statistics["bn1.running_var"], reference.bn1.running_var)
    with quantization.at(FOUR):
        assert torch.equal(model(batches[0]), found[FOUR])
        assert all(
            torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items()
        )  # the float state_dict
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(found[FOUR], found[Bits(2, 4)])


def test_norm_statistics_belong_to_a_width_and_its_overrides(model, batches):
    quantization = calibrate(model, batches, "norms=re-estimated")
    overrides = {"layer1.*": Bits(8, 8)}
    mixed = evaluate_at_bit_width(quantization, FOUR, lambda: model.eval()(batches[0]), overrides, batches)
    assert list(quantization.repairs) == ["4w4a, layer1.* at 8w8a"]
    plain = evaluate_at_bit_width(quantization, FOUR, lambda: model(batches[0]), None, batches)
    assert not torch.equal(mixed, plain)
    (full,) = evaluate_at_bit_widths(quantization, [Bits.FP], lambda _: model(batches[0]), overrides, batches)
    assert torch.equal(full[1], model(batches[0]))  # FP is full precision, without overrides or other statistics
    assert torch.equal(full[1], evaluate_at_bit_width(quantization, Bits.FP, lambda: model(batches[0])))


def test_norms_that_cannot_be_re_estimated_are_an_error(model, batches):
    frozen = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    with pytest.raises(UserError, match="no BatchNorm that is not frozen; use norms=matched or"):
        list(
            evaluate_at_bit_widths(calibrate(frozen, batches, "norms=re-estimated"), [FOUR], lambda _: 0, None, batches)
        )
    with pytest.raises(UserError, match="no images to compute the statistics of this bit-width from"):
        evaluate_at_bit_width(calibrate(model, batches, "norms=re-estimated"), FOUR, list)


# ---- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_loaded_quantization_equals_the_saved_one(model, batches, tmp_path, scheme):
    file = tmp_path / "q.safetensors"
    quantization = calibrate(model.eval(), batches, scheme)
    quantization.calibration = Calibration(8, 3, "crops", reconstruction_images=4)
    expected = evaluate_at_bit_width(quantization, FOUR, lambda: model(batches[0]), None, batches)
    quantization.save(file)
    loaded = Quantization.load(file, model)
    assert get_observations(loaded) == get_observations(quantization)
    assert (loaded.scheme, loaded.points, loaded.calibration) == (
        quantization.scheme,
        quantization.points,
        Calibration(8, 3, "crops", reconstruction_images=4),
    )
    assert torch.equal(
        evaluate_at_bit_width(loaded, FOUR, lambda: model(batches[0])), expected
    )  # with the saved norm statistics
    written = file.read_bytes()
    loaded.save(file)
    assert file.read_bytes() == written
    assert Quantization.load(file, model, Scheme.parse(scheme)).scheme == quantization.scheme


def test_the_header_is_readable(model, batches, tmp_path):
    quantization = calibrate(model, batches, "act=mse:2.4")
    quantization.calibration = Calibration(8)
    quantization.save(tmp_path / "q.safetensors")
    with open(tmp_path / "q.safetensors", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    metadata = header["__metadata__"]
    assert (metadata["format"], metadata["version"], metadata["scheme"]) == (
        "ssql_det quantization",
        "3",
        "act=mse:2.4",
    )
    assert metadata["calibration"] == '{"images": 8, "seed": 0, "data": ""}'  # as earlier versions wrote it
    assert json.loads(metadata["points"])[0] == {"path": "conv1", "side": "weight", "bits": 8}
    assert json.loads(metadata["model"])["tensors"]["conv1.weight"] == [8, 3, 3, 3]
    assert header["layer1.0.conv2:input/ends"]["shape"] == [2]


def test_a_file_of_another_model_is_an_error_that_names_a_tensor(model, batches, tmp_path):
    file = tmp_path / "q.safetensors"
    calibrate(model, batches).save(file)
    wide = copy.deepcopy(model)
    wide.linear = nn.Linear(16, 20)
    with pytest.raises(UserError, match=r"linear.weight is \[10, 16\] in the file and \[20, 16\] in this model"):
        Quantization.load(file, wide)
    with pytest.raises(
        UserError, match=r"another model: conv1.weight is \[8, 3, 3, 3\] in the file and \[64, 3, 7, 7\] in this model"
    ):
        Quantization.load(file, torchvision.models.resnet18())


def test_a_file_of_other_weights_points_or_scheme_is_an_error(model, batches, tmp_path):
    file = tmp_path / "q.safetensors"
    quantization = calibrate(model, batches, "act=mse")
    quantization.save(file)
    with pytest.raises(UserError, match="has scheme act=mse, not minmax"):
        Quantization.load(file, model, scheme=Scheme())
    with pytest.raises(UserError, match="has other points: conv1:weight is quantized in the file only"):
        check_same_points(quantization.points[1:], quantization.points, file)
    with pytest.raises(UserError, match="has other points: linear:input is not quantized in the file"):
        check_same_points((*quantization.points, QuantPoint("linear", Side.INPUT)), quantization.points, file)
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(UserError, match="calibrated on other weights"):
        Quantization.load(file, model)


def alter_file(file, metadata=(), tensors=()):
    """Change metadata and tensors of a file; ``None`` removes one. Its hash is removed, as if it had never had one."""
    all_tensors, all_metadata = read_safetensors(file)
    all_metadata.pop("sha256", None)
    for content, changes in ((all_metadata, dict(metadata)), (all_tensors, dict(tensors))):
        for name, value in changes.items():
            if value is None:
                del content[name]
            else:
                content[name] = value
    with atomic_write(file) as out:
        write_safetensors(all_tensors, all_metadata, out)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "pt"}, "does not hold a quantization"),
        ({"version": "9"}, "has version 9, this ssql_det reads up to 3"),
        ({"version": "9" * 5000}, "has version 9"),
        ({"scheme": "act=mye"}, "has an unsupported scheme: unknown activation quantizer 'mye'"),
        ({"scheme": None}, "has an unsupported scheme"),
        ({"points": None}, "is damaged"),
        ({"points": "["}, "is damaged"),
        ({"points": "[" * 100_000}, "is damaged"),
        ({"points": '[{"path": 5, "side": "weight"}]'}, "is damaged"),
        ({"points": '[{"path": "conv1", "side": "top"}]'}, "is damaged"),
        ({"points": '[{"path": "conv1", "side": "weight", "exec": "x"}]'}, "is damaged"),
        ({"model": "5"}, "is damaged"),
        ({"model": '{"digest": "", "tensors": ["a"]}'}, "is damaged"),
        ({"calibration": '{"images": "x"}'}, "is damaged"),
        ({"calibration": '{"images": 1, "seed": 0, "data": 5}'}, "is damaged"),
        ({"calibration": '{"images": -1, "seed": 0, "data": ""}'}, "is damaged"),
        ({"calibration": '{"images": true, "seed": 0, "data": ""}'}, "is damaged"),
        ({"calibration": '{"images": 1, "seed": 0, "data": "", "selection_images": -1}'}, "is damaged"),
        ({"calibration": '{"images": 1, "seed": 0, "data": "", "other_images": 1}'}, "is damaged"),
        (
            {"points": '[{"path": "conv1", "side": "weight"}, {"path": "conv1", "side": "weight"}]'},
            "a point is there tw",
        ),
        ({"scheme": f"weight={'9' * 5000}"}, r"has an unsupported scheme: .{190,200}$"),
    ],
    ids=str,
)
def test_an_invalid_header_is_an_error(model, batches, tmp_path, metadata, message):
    file = tmp_path / "q.safetensors"
    calibrate(model, batches).save(file)
    alter_file(file, metadata)
    with pytest.raises(UserError, match=message) as error:
        Quantization.load(file, model)
    assert str(file) in str(error.value)


KEY = "layer1:input"
COUNTS = torch.zeros(8192, dtype=torch.int64)
TENSORS = {
    "nan": {f"{KEY}/ends": torch.tensor([torch.nan, 1.0])},
    "infinite": {f"{KEY}/ends": torch.tensor([-1.0, torch.inf])},
    "minimum above maximum": {f"{KEY}/ends": torch.tensor([5.0, -5.0])},
    "another shape": {f"{KEY}/ends": torch.tensor([[1.0, 1.0]])},
    "integers": {f"{KEY}/ends": torch.tensor([1, 1])},
    "without counts": {f"{KEY}/sums": None},
    "negative counts": {f"{KEY}/sums": COUNTS - 1},
    "too few counts": {f"{KEY}/sums": COUNTS[:5]},
    "float counts": {f"{KEY}/sums": COUNTS.double()},
    "unknown parameter": {f"{KEY}/learned.step": torch.ones(1)},
    "unknown tensor": {f"{KEY}/else": torch.ones(1)},
    "unknown point": {"somewhere/ends": torch.ones(2)},
    "unknown norm": {"4w4a/norms.bn9.running_mean": torch.ones(2)},
    "norms without their variances": {f"4w4a/norms.{name}.running_mean": torch.ones(1) for name in ("bn1", "bn2")},
    "a type that NumPy lacks": {"somewhere/ends": torch.ones(2, dtype=torch.bfloat16)},
    "norm of another shape": {"4w4a/norms.bn1.running_mean": torch.ones(2)},
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_invalid_tensors_are_an_error(model, batches, change, tmp_path):
    file = tmp_path / "q.safetensors"
    calibrate(model, batches, "act=mse").save(file)
    alter_file(file, (), change)
    with pytest.raises(UserError, match=r"q.safetensors is damaged \(.*\); calibrate again"):
        Quantization.load(file, model)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format": "ssql_det ranges"}', b"\x80\x04cos\nsystem\n", b"\0" * 99]
)
def test_other_files_are_an_error(model, content, tmp_path):
    file = tmp_path / "q.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file} does not hold a quantization"):
        Quantization.load(file, model)
    with pytest.raises(UserError, match="there is no such file"):
        Quantization.load(tmp_path / "absent", model)
    with pytest.raises(UserError, match="does not hold a quantization"):
        Quantization.load(tmp_path, model)


def test_a_truncated_file_is_an_error_at_every_length(model, batches, tmp_path):
    file = tmp_path / "q.safetensors"
    calibrate(model, batches).save(file)
    whole = file.read_bytes()
    for length in (*range(0, len(whole) - 1, 97), len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=str(file)):
            Quantization.load(file, model)


# ---- errors ------------------------------------------------------------------------------------------------------


def test_invalid_calibration_is_an_error(model, batches):
    with pytest.raises(UserError, match="calibration loader is empty"):
        calibrate(model, [])
    with pytest.raises(UserError, match="at least 1 batch, got num_batches=-1"):
        calibrate(model, batches, num_batches=-1)
    with pytest.raises(UserError, match="values at layer1:input"):
        calibrate(model, [batches[0] * float("nan")])
    with pytest.raises(UserError, match="values at layer1:input"):
        calibrate(model, [batches[0] * float("nan")], "act=mse")
    with pytest.raises(UserError, match="holds a dict, not images"):
        calibrate(model, [{"image": batches[0]}])
    with pytest.raises(UserError, match="nothing to quantize"):
        calibrate(nn.ReLU(), batches)


def test_a_failed_calibration_keeps_the_former_one(model, batches):
    quantization = calibrate(model, batches)
    former = get_observations(quantization)
    for loader in ([], [batches[0] * float("nan")]):
        with pytest.raises(UserError):
            quantization.calibrate(loader)
        assert get_observations(quantization) == former


def test_an_invalid_batch_ends_calibration_immediately(model, batches):
    def loader():
        yield batches[0] * float("nan")
        raise AssertionError("continued after an invalid batch")

    with pytest.raises(UserError, match="values at layer1:input"):
        calibrate(model, loader())


def test_a_generic_network_is_calibrated_and_quantized(batches):
    model = PlainNet().eval()
    quantization = calibrate(model, batches)
    expected = model(batches[0])
    widths = [Bits(bits, bits) for bits in (8, 4, 2)]
    outputs = evaluate_at_bit_widths(quantization, widths, lambda _: model(batches[0]))
    errors = [(output - expected).norm().item() for _, output in outputs]
    assert 0 < errors[0] < errors[1] < errors[2]
