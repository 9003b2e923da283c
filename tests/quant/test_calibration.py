"""Calibration, and the file of a quantization that it leaves."""

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
    evaluate_at_width,
    evaluate_at_widths,
)
from ssql_det.quant.quantization_file import require_same_points

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


def calibrated(model, images, scheme="minmax", **how):
    quantization = Quantization(model, scheme=Scheme.parse(scheme))
    quantization.calibrate(images, **how)
    return quantization


def seen(quantization):
    """What was observed, by point."""
    observers = {point.key: quantization[point].observer for point in quantization.points}
    found = {key: each for key, each in observers.items() if each is not None}
    return {
        key: (
            None if each.min_val is None else [float(end) for end in each.range],
            None if each.sums is None else each.sums.tolist(),
        )
        for key, each in found.items()
    }


def test_calibration_sees_every_batch_in_evaluation_mode_and_puts_the_flags_back(model, batches):
    model.train()
    model.layer1[0].bn1.eval()
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    quantization = calibrated(model, batches)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    model.eval()
    by_hand = [model.layer1(torch.relu(model.bn1(model.conv1(x)))).aminmax() for x in batches]
    output = quantization[QuantPoint("layer1.0", Side.OUTPUT)].observer.range
    assert output == (min(each.min for each in by_hand), max(each.max for each in by_hand))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shards_merge_to_the_whole(model, batches, scheme):
    whole, half, rest = (calibrated(model, part, scheme) for part in (batches, batches[:1], batches[1:]))
    assert seen(half) != seen(whole)
    half.merge(rest)
    assert seen(half) == seen(whole)
    with pytest.raises(ValueError, match="same points and scheme"):
        half.merge(calibrated(model, batches, "act=mse:3"))


def test_batches_limits_and_tuples_and_forward_feed(model, batches):
    first = seen(calibrated(model, batches[:1]))
    assert seen(calibrated(model, batches, batches=1)) == first
    assert seen(calibrated(model, [(batches[0], torch.zeros(2))])) == first
    fed = calibrated(model, [{"image": batches[0]}], forward=lambda network, batch: network(batch["image"]))
    assert seen(fed) == first


def test_calibrating_again_begins_anew(model, batches):
    quantization = calibrated(model, batches)
    quantization.calibrate(batches[:1])
    assert seen(quantization) == seen(calibrated(model, batches[:1]))


# ---- norms ---------------------------------------------------------------------------------------------------------


def test_norms_are_re_estimated_at_each_width_from_what_the_quantized_network_sees(model, batches):
    own = copy.deepcopy(model.state_dict())
    quantization = calibrated(model, batches, "norms=re-estimated")
    with pytest.raises(UserError, match="norm statistics were not re-estimated at 4w4a"), quantization.at(FOUR):
        pass
    found = dict(
        evaluate_at_widths(quantization, [FOUR, Bits(2, 4)], lambda _: model.eval()(batches[0]), None, batches)
    )
    reference = copy.deepcopy(model)
    reference.bn1.reset_running_stats()
    reference.bn1.momentum = None
    reference.bn1.train()
    plain = Quantization(reference)
    plain.calibrate(batches[:1])  # of weights alone
    with plain.at(Bits(4, None)), torch.no_grad():
        for x in batches:
            reference.bn1(reference.conv1(x))
    statistics = quantization.norm_statistics["4w4a"]
    torch.testing.assert_close(statistics["bn1.running_mean"], reference.bn1.running_mean)
    torch.testing.assert_close(statistics["bn1.running_var"], reference.bn1.running_var)
    with quantization.at(FOUR):
        assert torch.equal(model(batches[0]), found[FOUR])
        assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())  # the ordinary one
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(found[FOUR], found[Bits(2, 4)])


def test_norms_are_of_a_width_and_its_overrides(model, batches):
    quantization = calibrated(model, batches, "norms=re-estimated")
    overrides = {"layer1.*": Bits(8, 8)}
    mixed = evaluate_at_width(quantization, FOUR, lambda: model.eval()(batches[0]), overrides, batches)
    assert list(quantization.norm_statistics) == ["4w4a, layer1.* at 8w8a"]
    plain = evaluate_at_width(quantization, FOUR, lambda: model(batches[0]), None, batches)
    assert not torch.equal(mixed, plain)
    (full,) = evaluate_at_widths(quantization, [Bits.FP], lambda _: model(batches[0]), overrides, batches)
    assert "FP" in quantization.norm_statistics  # a width called FP is full precision
    assert torch.equal(full[1], evaluate_at_width(quantization, Bits.FP, lambda: model(batches[0])))


def test_norms_that_cannot_be_re_estimated_are_one_sentence(model, batches):
    frozen = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    with pytest.raises(UserError, match="norms of this network are frozen"):
        list(
            evaluate_at_widths(
                Quantization(frozen, scheme=Scheme(norms="re-estimated")), [Bits.FP], lambda _: 0, None, batches
            )
        )
    with pytest.raises(UserError, match="no images to estimate the statistics of this bit-width from"):
        evaluate_at_width(calibrated(model, batches, "norms=re-estimated"), FOUR, list)


# ---- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_saved_file_gives_what_was_saved_and_equal_outputs(model, batches, tmp_path, scheme):
    file = tmp_path / "q.safetensors"
    quantization = calibrated(model.eval(), batches, scheme)
    quantization.calibration = Calibration(8, 3, "crops")
    expected = evaluate_at_width(quantization, FOUR, lambda: model(batches[0]), None, batches)
    quantization.save(file)
    again = Quantization.load(file, model)
    assert seen(again) == seen(quantization)
    assert (again.scheme, again.points, again.calibration) == (
        quantization.scheme,
        quantization.points,
        Calibration(8, 3, "crops"),
    )
    assert torch.equal(evaluate_at_width(again, FOUR, lambda: model(batches[0])), expected)  # with its norms
    written = file.read_bytes()
    again.save(file)
    assert file.read_bytes() == written
    assert Quantization.load(file, model, Scheme.parse(scheme)).scheme == quantization.scheme


def test_the_header_is_readable(model, batches, tmp_path):
    quantization = calibrated(model, batches, "act=mse:2.4")
    quantization.save(tmp_path / "q.safetensors")
    with open(tmp_path / "q.safetensors", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    metadata = header["__metadata__"]
    assert (metadata["format"], metadata["version"], metadata["scheme"]) == (
        "ssql_det quantization",
        "1",
        "act=mse:2.4",
    )
    assert json.loads(metadata["points"])[0] == {"path": "conv1", "side": "weight", "bits": 8}
    assert json.loads(metadata["model"])["tensors"]["conv1.weight"] == [8, 3, 3, 3]
    assert header["layer1.0.conv2:input/ends"]["shape"] == [2]


def test_one_of_another_model_is_refused_by_the_first_tensor(model, batches, tmp_path):
    file = tmp_path / "q.safetensors"
    calibrated(model, batches).save(file)
    wide = copy.deepcopy(model)
    wide.linear = nn.Linear(16, 20)
    with pytest.raises(UserError, match=r"another model: linear.weight is \[10, 16\] in the file and \[20, 16\] here"):
        Quantization.load(file, wide)
    with pytest.raises(
        UserError, match=r"another model: conv1.weight is \[8, 3, 3, 3\] in the file and \[64, 3, 7, 7\] here"
    ):
        Quantization.load(file, torchvision.models.resnet18())


def test_one_of_other_weights_points_or_scheme_is_refused(model, batches, tmp_path):
    file = tmp_path / "q.safetensors"
    quantization = calibrated(model, batches, "act=mse")
    quantization.save(file)
    with pytest.raises(UserError, match="has scheme act=mse, not minmax"):
        Quantization.load(file, model, scheme=Scheme())
    with pytest.raises(UserError, match="has other points: conv1:weight is quantized in the file and not here"):
        require_same_points(quantization.points[1:], quantization.points, file)
    with pytest.raises(UserError, match="has other points: linear:input is not quantized in the file"):
        require_same_points((*quantization.points, QuantPoint("linear", Side.INPUT)), quantization.points, file)
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(UserError, match="calibrated on other weights"):
        Quantization.load(file, model)


def altered(file, metadata=(), tensors=()):
    """The file with other strings and tensors; ``None`` takes one away."""
    found, strings = read_safetensors(file)
    for place, changes in ((strings, dict(metadata)), (found, dict(tensors))):
        for name, value in changes.items():
            if value is None:
                del place[name]
            else:
                place[name] = value
    with atomic_write(file) as out:
        write_safetensors(found, strings, out)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"format": "pt"}, "does not hold a quantization"),
        ({"version": "9"}, "has version 9, this ssql_det reads up to 1"),
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
    ],
    ids=str,
)
def test_a_header_of_something_else_is_one_sentence(model, batches, tmp_path, metadata, said):
    file = tmp_path / "q.safetensors"
    calibrated(model, batches).save(file)
    altered(file, metadata)
    with pytest.raises(UserError, match=said) as refusal:
        Quantization.load(file, model)
    assert str(file) in str(refusal.value)


KEY = "layer1:input"
HIST = torch.zeros(8192, dtype=torch.int64)
TENSORS = {
    "no number": {f"{KEY}/ends": torch.tensor([torch.nan, 1.0])},
    "endless": {f"{KEY}/ends": torch.tensor([-1.0, torch.inf])},
    "upside down": {f"{KEY}/ends": torch.tensor([5.0, -5.0])},
    "three": {f"{KEY}/ends": torch.tensor([[1.0, 1.0]])},
    "whole numbers": {f"{KEY}/ends": torch.tensor([1, 1])},
    "without counts": {f"{KEY}/sums": None},
    "counts below nothing": {f"{KEY}/sums": HIST - 1},
    "other counts": {f"{KEY}/sums": HIST[:5]},
    "counts that are no numbers of things": {f"{KEY}/sums": HIST.double()},
    "too much": {f"{KEY}/learned.step": torch.ones(1)},
    "more": {f"{KEY}/else": torch.ones(1)},
    "of nothing": {"somewhere/ends": torch.ones(2)},
    "norms of nothing": {"4w4a/norms.bn9.running_mean": torch.ones(2)},
    "norms of other channels": {"4w4a/norms.bn1.running_mean": torch.ones(2)},
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_tensors_that_cannot_be_are_refused(model, batches, change, tmp_path):
    file = tmp_path / "q.safetensors"
    calibrated(model, batches, "act=mse").save(file)
    altered(file, (), change)
    with pytest.raises(UserError, match=r"q.safetensors is damaged \(.*\); calibrate again"):
        Quantization.load(file, model)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format": "ssql_det ranges"}', b"\x80\x04cos\nsystem\n", b"\0" * 99]
)
def test_other_files_are_refused(model, content, tmp_path):
    file = tmp_path / "q.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file} does not hold a quantization"):
        Quantization.load(file, model)
    with pytest.raises(UserError, match="there is no such file"):
        Quantization.load(tmp_path / "absent", model)
    with pytest.raises(UserError, match="does not hold a quantization"):
        Quantization.load(tmp_path, model)


def test_a_torn_file_is_one_sentence_at_every_length(model, batches, tmp_path):
    file = tmp_path / "q.safetensors"
    calibrated(model, batches).save(file)
    whole = file.read_bytes()
    for length in (*range(0, len(whole) - 1, 97), len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=str(file)):
            Quantization.load(file, model)


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(model, batches):
    with pytest.raises(UserError, match="calibration loader is empty"):
        calibrated(model, [])
    with pytest.raises(UserError, match="at least 1 batch, got batches=-1"):
        calibrated(model, batches, batches=-1)
    with pytest.raises(UserError, match="values at layer1:input"):
        calibrated(model, [batches[0] * float("nan")])
    with pytest.raises(UserError, match="values at layer1:input"):
        calibrated(model, [batches[0] * float("nan")], "act=mse")
    with pytest.raises(UserError, match="holds a dict, not images"):
        calibrated(model, [{"image": batches[0]}])
    with pytest.raises(UserError, match="nothing to quantize"):
        calibrated(nn.ReLU(), batches)


def test_a_calibration_that_fails_leaves_the_one_before(model, batches):
    quantization = calibrated(model, batches)
    before = seen(quantization)
    for loader in ([], [batches[0] * float("nan")]):
        with pytest.raises(UserError):
            quantization.calibrate(loader)
        assert seen(quantization) == before


def test_a_bad_batch_ends_calibration_at_once(model, batches):
    def loader():
        yield batches[0] * float("nan")
        raise AssertionError("went on after a bad batch")

    with pytest.raises(UserError, match="values at layer1:input"):
        calibrated(model, loader())


def test_the_generic_network_goes_the_whole_way(batches):
    model = PlainNet().eval()
    quantization = calibrated(model, batches)
    expected = model(batches[0])
    widths = [Bits(bits, bits) for bits in (8, 4, 2)]
    outputs = evaluate_at_widths(quantization, widths, lambda _: model(batches[0]))
    errors = [(output - expected).norm().item() for _, output in outputs]
    assert 0 < errors[0] < errors[1] < errors[2]
