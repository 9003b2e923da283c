"""Synchronizations and collectives of a training step of SSQL."""

import pytest
import torch
from support import collectives_step
from torch.utils._python_dispatch import TorchDispatchMode

from ssql_det.backbones import build_backbone
from ssql_det.core.launch import launch
from ssql_det.quant import SampledBits, affine
from ssql_det.ssl import SSQL, SimSiam

pytestmark = pytest.mark.slow


class ReadCounter(TorchDispatchMode):
    """Counts reads of tensor values in Python, for which the CPU waits until the GPU is done."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def test_a_step_of_a_resnet18_reads_at_most_three_values(monkeypatch):
    """The code path of a GPU, run on the CPU. Reading a list of values is one read."""
    monkeypatch.setattr(affine, "_reads_without_sync", lambda x: False)
    lists, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(1) or tolist(tensor))
    torch.manual_seed(0)
    network = SSQL(SimSiam(build_backbone("resnet18"), dim=64, hidden=32), SampledBits(0)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    views = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    with ReadCounter() as reads:
        loss = network(views, 0)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 1 <= reads.count + len(lists) <= 3


@pytest.mark.parametrize(("scheme", "collectives"), [("minmax", ["max"]), ("act=mse", ["max", "sum"])])
def test_ranges_are_merged_in_one_collective_and_histograms_in_another(scheme, collectives, tmp_path):
    launch(collectives_step.run, scheme, tmp_path, processes=2)
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text().split() == collectives
