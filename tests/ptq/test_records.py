"""Records of a block: windows and regions within a limit of bytes."""

from dataclasses import replace

import torch
from torch import nn

from ssql_det.ptq.blocks import Block, FpnLevel, Layer, list_tensors
from ssql_det.ptq.records import Recorder, Records, Samples


def build():
    torch.manual_seed(0)
    names = ("lateral", "output", "coarser")
    return nn.ModuleDict(
        {name: nn.Conv2d(4, 4, 1 if name == "lateral" else 3, padding=int(name != "lateral")) for name in names}
    )


def record(block, batches, max_bytes):
    model = build()
    recorder = Recorder(model, block, len(batches), 0, max_bytes)
    for inputs in batches:
        recorder.add_float(inputs)
    return model, recorder, [recorder.make_samples(index, inputs) for index, inputs in enumerate(batches)]


def make_map(size):
    """A map whose values are its rows and columns."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack((rows, columns, rows, columns))[None].float()


def test_all_is_kept_within_the_limit():
    _, recorder, samples = record(Block("output", ("output",)), [make_map(8), make_map(6)], 2**20)
    assert not recorder.is_cropped
    assert [each.inputs.shape[2] for each in samples] == [8, 6]


def test_windows_of_an_fpn_level_show_the_same_place():
    block = FpnLevel("level", ("lateral", "output"), "coarser")
    batches = [[make_map(32), make_map(16)] for _ in range(6)]
    limit = 6 * 20_000
    model, recorder, samples = record(block, batches, limit)
    assert recorder.is_cropped
    places = set()
    for each in samples:
        fine, coarse = each.inputs
        assert fine.shape[2:] == (2 * coarse.shape[2], 2 * coarse.shape[3])
        assert coarse.shape[2] < 16
        assert (fine[0, :2, 0, 0] == 2 * coarse[0, :2, 0, 0]).all()
        places.add(tuple(fine[0, :2, 0, 0].tolist()))
        torch.testing.assert_close(each.outputs, block.run(model, each.float_inputs).detach())
    assert len(places) > 1
    total = sum(x.nbytes for each in samples for x in (*each.inputs, *each.float_inputs, each.outputs))
    assert limit / 2 < total <= limit


def record_weighted(block, model, batches, limit):
    recorder = Recorder(model, block, len(batches), 0, limit, has_weights=True)
    for inputs in batches:
        recorder.add_float(inputs)
    assert recorder.is_cropped
    samples = [recorder.make_samples(index, inputs) for index, inputs in enumerate(batches)]

    def set_weights(index, whole):
        samples[index] = replace(samples[index], weights=recorder.cut_outputs(index, whole))
        return samples[index]

    return samples, set_weights


def count_bytes(samples):
    parts = [[each.inputs, each.float_inputs, each.outputs, each.weights] for each in samples]
    return sum(x.nbytes for x in list_tensors(parts))


def test_weights_are_those_of_the_window():
    """Of a level of an FPN, of a head for levels whose sizes are no multiples, and behind a stride."""
    limit = 6 * 20_000
    block = FpnLevel("level", ("lateral", "output"), "coarser")
    samples, set_weights = record_weighted(block, build(), [[make_map(32), make_map(16)] for _ in range(6)], limit)
    for index in range(6):
        each = set_weights(index, [make_map(32)])
        assert torch.equal(each.weights, each.inputs[0])
    assert limit / 2 < count_bytes(samples) <= limit

    class Head(nn.Module):
        def forward(self, levels):
            return [x + 1 for x in levels], [torch.cat((x, x), 1) for x in levels]

    levels = [make_map(size) for size in (25, 13, 7)]
    samples, set_weights = record_weighted(
        Block("head", ("head",)), nn.ModuleDict({"head": Head()}), [levels] * 6, limit
    )
    for index in range(6):
        each = set_weights(index, list_tensors(Head()(levels)))
        assert all(map(torch.equal, list_tensors(each.weights), list_tensors(Head()(each.inputs))))

    model = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, stride=2, padding=1)})
    samples, set_weights = record_weighted(Block("conv", ("conv",)), model, [make_map(33)] * 6, limit)
    for index in range(6):
        each = set_weights(index, [make_map(33)[:, :, ::2, ::2]])
        assert each.weights.shape == each.outputs.shape
        assert (each.weights - each.inputs[:, :, ::2, ::2]).abs().max() <= 2


def test_weights_are_those_of_the_regions():
    batches = [torch.randn(30, 4, 5, 5), torch.randn(20, 4, 5, 5)]
    samples, set_weights = record_weighted(Block("output", ("output",), has_regions=True), build(), batches, 40_000)
    for index, regions in enumerate(batches):
        assert torch.equal(set_weights(index, [regions]).weights, samples[index].inputs)
    assert [len(each) for each in samples] == [12, 12]
    records = Records([replace(each, weights=None) for each in samples])
    records.set_weights([each.weights for each in samples])
    rows = records.groups[0].select([3, 20], torch.device("cpu"))
    assert torch.equal(rows.weights, rows.inputs)


def test_regions_are_left_out_but_no_image():
    batches = [torch.randn(count, 4, 5, 5) for count in (30, 1, 0, 20)]
    _, _, samples = record(Block("output", ("output",), has_regions=True), batches, 4 * 6_000)
    assert [len(each) for each in samples] == [5, 1, 0, 5]
    assert len(Records(samples)) == 11


def test_samples_of_one_shape_are_drawn_together():
    maps = [torch.full((1, 4, size, size), float(index)) for index, size in enumerate((6, 8, 6, 6))]
    records = Records([Samples(x, x, x) for x in maps])
    assert [len(group) for group in records.groups] == [3, 1]
    drawn = records.draw(40, torch.Generator().manual_seed(0))
    values = [records.groups[index].select(rows, torch.device("cpu")).inputs[:, 0, 0, 0] for index, rows in drawn]
    assert set(torch.cat(values).tolist()) == {0, 1, 2, 3}
    assert sum(map(len, values)) == 40
    assert list(records.split(2)) == [(0, [0, 1]), (0, [2]), (1, [0])]


def test_a_layer_sees_all_its_calls():
    """As an RPN's head: the inputs of all calls, until the last module of the block has run."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, levels):
            return [self.conv(level) for level in levels]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head()

        def forward(self, x):
            return self.head([x, x[:, :, ::2, ::2]])

    from ssql_det.ptq.blocks import recording_inputs

    model, (layer,) = Net(), Block("head", ("head",)).split_layers(["head.conv", "other"])
    assert layer == Layer("head.conv", ("head.conv",), "head")
    with recording_inputs(model, layer) as run:
        inputs = run(lambda network, batch: network(batch), make_map(8))
    assert [x.shape[2] for x in inputs] == [8, 4]
    assert [x.shape[2] for x in layer.run(model, inputs)] == [8, 4]
