"""Synchronized norms: in one process they are BatchNorm. ``test_two_processes`` has those of two processes."""

import pytest
import torch
from torch import nn

from ssql_det.pretrain.sync_norm import CPUSyncBatchNorm, convert_sync_batchnorm


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(5), (7, 5)), (nn.BatchNorm2d(5), (3, 5, 4, 2))])
@pytest.mark.parametrize("training", [True, False])
def test_in_one_process_it_is_batch_norm(norm, shape, training):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(norm).train(training)
    converted = convert_sync_batchnorm(nn.Sequential(type(norm)(5)).train(training))
    converted.load_state_dict(network.state_dict())
    assert isinstance(converted[0], CPUSyncBatchNorm)
    assert torch.equal(converted(x), network(x))
    assert torch.equal(converted[0].running_var, network[0].running_var)


def test_parameters_and_buffers_stay_the_same_tensors():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(2, affine=False)))
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict(keep_vars=True).items()}
    convert_sync_batchnorm(network)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict(keep_vars=True).items()} == before
    assert not any(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in network.modules())
    with pytest.raises(ValueError, match=r"expected \[N, C\] or \[N, C, H, W\]"):
        network[1](torch.zeros(2, 4, 3))
