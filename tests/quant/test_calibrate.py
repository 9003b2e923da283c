"""Calibration and the file of ranges that it leaves."""

import copy
import json

import pytest
import torch
import torchvision
from networks import CifarResNet, PlainNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, MinMax, Observer, Ranges, calibrate, quant_points, quantized


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CifarResNet()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 16, 16, generator=generator) for _ in range(4)]


def test_calibration_sees_every_batch_in_evaluation_mode_and_puts_the_flags_back(model, batches):
    model.train()
    model.layer1[0].bn1.eval()
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    ranges = calibrate(model, batches)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    model.eval()
    by_hand = [model.layer1(torch.relu(model.bn1(model.conv1(x)))).aminmax() for x in batches]
    low, high = ranges[next(point for point in quant_points(model) if point.key == "layer1.0:output")].range(8)
    assert (low, high) == (min(each.min for each in by_hand), max(each.max for each in by_hand))


def test_shards_merge_to_the_whole(model, batches):
    whole = calibrate(model, batches)
    half = calibrate(model, batches[:2])
    assert half != whole
    half.merge(calibrate(model, batches[2:]))
    assert half == whole


def test_batches_limits_and_tuples_and_forward_feed(model, batches):
    first = calibrate(model, batches[:1])
    assert calibrate(model, batches, batches=1) == first
    assert calibrate(model, [(batches[0], torch.zeros(2))]) == first
    fed = calibrate(model, [{"image": batches[0]}], forward=lambda network, batch: network(batch["image"]))
    assert fed == first


class Halved(MinMax):
    """Another kind of observer needs no change elsewhere."""

    def range(self, bits):
        low, high = super().range(bits)
        return low / 2, high / 2


def test_the_observer_is_an_argument(model, batches):
    points = quant_points(model)
    plain, halved = calibrate(model, batches, points), calibrate(model, batches, points, observer=Halved)
    point = next(point for point in points if not point.is_weight)
    assert isinstance(halved[point], Observer)
    assert halved.qparams(point, 8).scale == plain.qparams(point, 8).scale / 2
    per_channel = calibrate(model, batches, points, observer=lambda: MinMax(axis=1))
    assert per_channel.qparams(point, 8).scale.shape == (8,)
    model.eval()
    with quantized(model, points, per_channel, Bits(4, 4)), torch.no_grad():
        fine = model(batches[0])
    with quantized(model, points, plain, Bits(4, 4)), torch.no_grad():
        coarse = model(batches[0])
    assert (fine - model(batches[0])).norm() != (coarse - model(batches[0])).norm()


def test_a_saved_file_gives_equal_ranges_and_equal_outputs(model, batches, tmp_path):
    points = quant_points(model)
    ranges = calibrate(model, batches, points)
    ranges.save(tmp_path / "ranges.json", model)
    again = Ranges.load(tmp_path / "ranges.json", model, points)
    assert again == ranges
    with quantized(model.eval(), points, ranges, Bits(4, 4)):
        expected = model(batches[0])
    with quantized(model, points, again, Bits(4, 4)):
        assert torch.equal(model(batches[0]), expected)


def test_ranges_of_another_model_are_refused_by_the_first_missing_path(model, batches, tmp_path):
    file = tmp_path / "ranges.json"
    calibrate(model, batches).save(file, model)
    other = torchvision.models.resnet18()
    with pytest.raises(UserError, match="no entry for relu:output: they are of another model"):
        Ranges.load(file, other, quant_points(other))


def test_ranges_of_another_width_are_refused_by_tensor(model, batches, tmp_path):
    file = tmp_path / "ranges.json"
    calibrate(model, batches).save(file, model)
    wide = copy.deepcopy(model)
    wide.linear = nn.Linear(16, 20)
    with pytest.raises(UserError, match=r"another model: linear.weight is \[10, 16\] there and \[20, 16\] here"):
        Ranges.load(file, wide, quant_points(wide))


def test_ranges_of_other_weights_are_refused(model, batches, tmp_path):
    file = tmp_path / "ranges.json"
    calibrate(model, batches).save(file, model)
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(UserError, match="calibrated on other weights"):
        Ranges.load(file, model, quant_points(model))


DAMAGED = [
    '{"format": "ssql_det ranges", "version": 9}',
    '{"format": "ssql_det ranges"}',
    '{"format": "ssql_det ranges", "version": 1, "points": []}',
    '{"format": "ssql_det ranges", "version": 1, "points": {"layer1:input": {"observer": "guess"}}}',
    '{"format": "ssql_det ranges", "version": 1, "points": {}, "model": {}}',
    '{"format": "ssql_det ranges", "version": 1, "points": {}, "model": {"tensors": 5, "digest": ""}}',
    '{"format": "ssql_det ranges", "version": 1, "points": {}, "model": {"tensors": ["a"], "digest": ""}}',
]


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", "[" * 100000, *DAMAGED])
def test_other_files_are_refused(model, content, tmp_path):
    file = tmp_path / "ranges.json"
    file.write_text(content)
    with pytest.raises(UserError, match=str(file)):
        Ranges.load(file, model, quant_points(model))
    with pytest.raises(UserError, match="cannot read ranges"):
        Ranges.load(tmp_path / "absent.json", model, quant_points(model))
    with pytest.raises(UserError, match="cannot read ranges"):
        Ranges.load(tmp_path, model, quant_points(model))


ENDS = {
    "no number": {"low": float("nan")},
    "endless": {"high": float("inf")},
    "upside down": {"low": 5.0, "high": -5.0},
    "several": {"low": [0.0, 0.0]},
    "several, alike": {"low": [0.0, 0.0], "high": [1.0, 1.0]},
    "an axis of words": {"axis": "x"},
    "one for many channels": {"axis": 1},
    "a word": {"low": "x"},
    "no end": {"high": None},
}


@pytest.mark.parametrize("change", ENDS.values(), ids=ENDS)
def test_a_range_that_cannot_be_is_refused(model, batches, change, tmp_path):
    file = tmp_path / "ranges.json"
    calibrate(model, batches).save(file, model)
    record = json.loads(file.read_text())
    record["points"]["layer1:input"] |= change
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"ranges.json is damaged \(.*\); calibrate again"):
        Ranges.load(file, model, quant_points(model))


def test_the_file_is_plain_json_with_a_version(model, batches, tmp_path):
    calibrate(model, batches).save(tmp_path / "ranges.json", model)
    record = json.loads((tmp_path / "ranges.json").read_text())
    assert (record["format"], record["version"]) == ("ssql_det ranges", 1)
    assert next(iter(record["points"])) == "layer1:input"


def test_mistakes_are_one_sentence(model, batches):
    with pytest.raises(UserError, match="calibration loader is empty"):
        calibrate(model, [])
    with pytest.raises(UserError, match="at least 1 batch, got batches=-1"):
        calibrate(model, batches, batches=-1)
    with pytest.raises(UserError, match="reached layer1:input"):
        calibrate(model, [batches[0] * float("nan")])
    with pytest.raises(UserError, match="holds a dict, not images"):
        calibrate(model, [{"image": batches[0]}])
    with pytest.raises(UserError, match="nothing to quantize"):
        calibrate(nn.ReLU(), batches)


def test_a_bad_batch_ends_calibration_at_once(model, batches):
    def loader():
        yield batches[0] * float("nan")
        raise AssertionError("went on after a bad batch")

    with pytest.raises(UserError, match="reached layer1:input"):
        calibrate(model, loader())


def test_the_generic_network_goes_the_whole_way(batches):
    model = PlainNet().eval()
    points = quant_points(model)
    ranges = calibrate(model, batches, points)
    expected = model(batches[0])
    errors = []
    for bits in (8, 4, 2):
        with quantized(model, points, ranges, Bits(bits, bits)):
            errors.append((model(batches[0]) - expected).norm().item())
    assert 0 < errors[0] < errors[1] < errors[2]
