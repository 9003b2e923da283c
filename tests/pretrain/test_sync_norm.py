"""Norms over all processes: two are one with the same batch, and one is BatchNorm."""

import pytest
import torch
from pretrain import two_processes
from torch import nn

from ssql_det.core.ranks import launch
from ssql_det.pretrain.sync_norm import SyncNorm, synchronized


def test_two_processes_are_one_with_the_same_batch(tmp_path):
    two_processes.step(tmp_path)
    launch(two_processes.step, tmp_path, processes=2)
    loss, gradients, statistics = torch.load(tmp_path / "1_0.pt")
    halves = [torch.load(tmp_path / f"2_{rank}.pt") for rank in (0, 1)]
    assert abs(sum(half[0] for half in halves) / 2 - loss) < 1e-9
    for _, of_rank, buffers in halves:
        for found, expected in ((of_rank, gradients), (buffers, statistics)):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                error = (found[name] - value).abs().max()
                assert error <= 1e-9 * value.abs().max().clamp(min=1e-6), name  # some are 0 but for rounding
    assert halves[0][0] != halves[1][0]  # each has a loss of its own


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(5), (7, 5)), (nn.BatchNorm2d(5), (3, 5, 4, 2))])
@pytest.mark.parametrize("training", [True, False])
def test_one_process_is_batch_norm(norm, shape, training):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(norm).train(training)
    twin = synchronized(nn.Sequential(type(norm)(5)).train(training))
    twin.load_state_dict(network.state_dict())
    assert isinstance(twin[0], SyncNorm)
    assert torch.equal(twin(x), network(x))
    assert torch.equal(twin[0].running_var, network[0].running_var)


def test_parameters_and_statistics_stay_the_same_tensors():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(2, affine=False)))
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict(keep_vars=True).items()}
    synchronized(network)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict(keep_vars=True).items()} == before
    assert not any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in network.modules())
    with pytest.raises(ValueError, match=r"expected \[N, C\] or \[N, C, H, W\]"):
        network[1](torch.zeros(2, 4, 3))
