"""Steps, views and the view loader give the same numbers on each device, in any memory format."""

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from support.devices import pretraining
from support.devices.parametrization import assert_kept, on_each_device
from support.small_methods import METHODS, make_small_method
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ssql_det.pretrain.view_loader import ViewBatch, _augment_ahead
from ssql_det.quant import Bits, FixedBits, affine, hooks, quantization
from ssql_det.ssl import SSQL

pytestmark = pytest.mark.slow

CHECKS = pretraining.CHECKS


@on_each_device
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_device_equals_the_cpu(check, device):
    assert_kept(check(device))


@pytest.mark.parametrize("is_ssql", [False, True], ids=["alone", "SSQL"])
@pytest.mark.parametrize("kind", METHODS)
def test_a_forward_pass_on_a_gpu_reads_nothing_back(kind, is_ssql, monkeypatch):
    """On tensors that only claim to be on a GPU: torch refuses to read them, or to mix them with the CPU's."""
    checked = []
    monkeypatch.setattr(quantization, "check_finite", checked.append)  # the one read of SSQL, of all ranges at once
    monkeypatch.setattr(affine, "_has_kernel", lambda x, scale: False)  # which needs a real GPU
    method = make_small_method(kind).float()
    network = SSQL(method, FixedBits(Bits(3, 4))) if is_ssql else method
    monkeypatch.setattr(hooks, "tensor_version", lambda tensor: (id(tensor), tensor._version))  # they have no memory
    with FakeTensorMode():
        for module in network.modules():
            for name, value in (*module._parameters.items(), *module._buffers.items()):
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    is_parameter = name in module._parameters
                    setattr(module, name, nn.Parameter(fake, value.requires_grad) if is_parameter else fake)
        loss = network([torch.empty(6, 3, 32, 32, device="cuda") for _ in range(2)], 0)
        assert loss.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            loss.item()
    assert len(checked) == is_ssql


def test_the_next_batch_is_augmented_while_the_gpu_trains(monkeypatch):
    """The order of the work in both streams, with streams that only note it."""
    events = []

    class Stream:
        def wait_stream(self, other):
            events.append("wait for the side stream")

    @contextlib.contextmanager
    def enter(stream):
        events.append("enter the side stream")
        yield
        events.append("leave the side stream")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda view, stream: events.append(f"keep {view.item():g}"))
    raw = (ViewBatch((torch.tensor(float(index)),), (index,), ()) for index in itertools.count())

    def augment(batch):
        events.append(f"augment {batch.positions[0]}")
        return replace(batch, views=tuple(10 * view for view in batch.views))

    loader = _augment_ahead(raw, augment, torch.device("cuda"))
    first = ["enter the side stream", "augment 0", "leave the side stream"]
    for index in range(3):
        batch = next(loader)
        assert (batch.positions, batch.views[0].item()) == ((index,), 10 * index)
        ahead = ["enter the side stream", f"augment {index + 1}", "leave the side stream"]
        assert events == [*first, "wait for the side stream", f"keep {10 * index}", *ahead]
        events.clear()
        first = []
