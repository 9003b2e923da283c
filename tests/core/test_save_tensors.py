"""Equal content gives equal bytes, which both our reader and ``torch.load`` read."""

import io
from collections import OrderedDict

import pytest
import torch
from support.core.comparison import same
from torch import nn

from ssql_det.core.tensor_files import save_tensors
from ssql_det.core.unpickler import read_tensors


def copy_string(text):
    """An equal string that is another object."""
    return "".join([*text])


def make_checkpoint(string):
    """A checkpoint in which strings are repeated; ``string`` makes each of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).state_dict()
    state = OrderedDict((string(name), tensor) for name, tensor in network.items())
    state._metadata = OrderedDict(
        (string(name), {string(key): value for key, value in of_module.items()})
        for name, of_module in network._metadata.items()
    )
    names = [string("0.weight"), string("model"), string("0.weight"), string("cpu"), string("ä")]
    return {
        string("model"): state,
        string("resume"): {string("model"): string("model"), string("names"): names, string("steps"): (3, 0.1)},
    }


def to_bytes(content, save=save_tensors):
    file = io.BytesIO()
    save(content, file)
    return file.getvalue()


def test_equal_content_gives_equal_bytes_whether_or_not_its_strings_are_one_object():
    shared, separate = make_checkpoint(str), make_checkpoint(copy_string)
    names = [*shared["resume"]["names"]], [*separate["resume"]["names"]]
    assert names[0][0] is names[0][2]
    assert names[1][0] is not names[1][2]
    assert to_bytes(shared) == to_bytes(separate)
    assert to_bytes(shared, torch.save) != to_bytes(separate, torch.save)  # why save_tensors exists


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 3, 1, 1), (4, 1, 3, 3), (1, 3, 2, 1)])
def test_equal_tensors_give_equal_bytes_in_any_memory_format(shape):
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    channels_last = torch.empty(shape).to(memory_format=torch.channels_last).copy_(tensor)
    assert channels_last.stride() != tensor.stride()
    assert to_bytes({"weight": channels_last}) == to_bytes({"weight": tensor})


def test_other_content_gives_other_bytes():
    other = make_checkpoint(str)
    other["resume"]["names"][0] = "0.bias"
    assert to_bytes(other) != to_bytes(make_checkpoint(str))


@pytest.mark.parametrize("string", [str, copy_string], ids=["one object", "several objects"])
def test_both_readers_read_it(string, tmp_path):
    (tmp_path / "model.pth").write_bytes(to_bytes(make_checkpoint(string)))
    expected = make_checkpoint(str)
    for loaded in (read_tensors(tmp_path / "model.pth"), torch.load(tmp_path / "model.pth", weights_only=True)):
        assert same(loaded, expected)
        assert same(loaded["model"]._metadata, expected["model"]._metadata)
        network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
        network.load_state_dict(loaded["model"])
        assert torch.equal(network[0].weight, expected["model"]["0.weight"])


def test_shared_memory_is_kept(tmp_path):
    table = torch.arange(6.0)
    (tmp_path / "model.pth").write_bytes(to_bytes({"whole": table, "part": table[2:4]}))
    for loaded in (read_tensors(tmp_path / "model.pth"), torch.load(tmp_path / "model.pth", weights_only=True)):
        loaded["whole"][2] = 9
        assert loaded["part"].tolist() == [9, 3]
