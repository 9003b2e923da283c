"""Equal content is equal bytes, and both readers give it back."""

import io
from collections import OrderedDict

import pytest
import torch
from support.core.comparison import same
from torch import nn

from ssql_det.core.tensor_files import save_tensors
from ssql_det.core.unpickler import read_tensors


def another(text):
    """An equal string that is an object of its own."""
    return "".join([*text])


def content(string):
    """A checkpoint in which strings recur, each made by a function."""
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


def saved(content, save=save_tensors):
    file = io.BytesIO()
    save(content, file)
    return file.getvalue()


def test_equal_content_is_equal_bytes_whichever_strings_are_one_object():
    one, several = content(str), content(another)
    names = [*one["resume"]["names"]], [*several["resume"]["names"]]
    assert names[0][0] is names[0][2]
    assert names[1][0] is not names[1][2]
    assert saved(one) == saved(several)
    assert saved(one, torch.save) != saved(several, torch.save)  # why there is another way to save


def test_other_content_is_other_bytes():
    other = content(str)
    other["resume"]["names"][0] = "0.bias"
    assert saved(other) != saved(content(str))


@pytest.mark.parametrize("string", [str, another], ids=["one object", "several"])
def test_both_readers_give_it_back(string, tmp_path):
    (tmp_path / "model.pth").write_bytes(saved(content(string)))
    expected = content(str)
    for found in (read_tensors(tmp_path / "model.pth"), torch.load(tmp_path / "model.pth", weights_only=True)):
        assert same(found, expected)
        assert same(found["model"]._metadata, expected["model"]._metadata)
        network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
        network.load_state_dict(found["model"])
        assert torch.equal(network[0].weight, expected["model"]["0.weight"])


def test_tensors_that_share_their_memory_still_do(tmp_path):
    table = torch.arange(6.0)
    (tmp_path / "model.pth").write_bytes(saved({"whole": table, "part": table[2:4]}))
    for found in (read_tensors(tmp_path / "model.pth"), torch.load(tmp_path / "model.pth", weights_only=True)):
        found["whole"][2] = 9
        assert found["part"].tolist() == [9, 3]
