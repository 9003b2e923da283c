"""Quantizers and contexts give the same numbers on each device, in any memory format."""

import sys
from types import SimpleNamespace

import pytest
import torch
from support.devices import contexts, quantizers
from support.devices.parametrization import assert_kept, on_each_device
from torch._subclasses.fake_tensor import FakeTensorMode

from ssql_det import quant
from ssql_det.quant import affine

CHECKS = {**contexts.CHECKS, **quantizers.CHECKS}


@on_each_device
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_device_equals_the_cpu(check, device):
    assert_kept(check(device))


@pytest.mark.parametrize("shape", [(), (1,), (6, 5), (6, 5, 3, 3)])
def test_the_kernel_is_chosen_for_dense_tensors(shape, monkeypatch):
    """Which layouts have a kernel, on tensors that only claim to be on a GPU."""
    monkeypatch.setattr(affine, "find_spec", lambda name: name == "triton")
    monkeypatch.setitem(sys.modules, "ssql_det.quant.triton_kernel", SimpleNamespace(is_available=lambda: True))
    monkeypatch.setattr(quant, "triton_kernel", SimpleNamespace(is_available=lambda: True), raising=False)
    with FakeTensorMode():
        x, whole = torch.empty(shape, device="cuda"), torch.empty((), device="cuda")
        assert affine._has_kernel(x, whole)
        assert not affine._has_kernel(x.cpu(), whole.cpu())
        assert not affine._has_kernel(torch.empty((*shape, 2), device="cuda")[..., 0], whole) or x.numel() == 1
        if len(shape) > 1:
            of_first, of_second = (
                torch.empty([6 if each == axis else 1 for each in range(len(shape))], device="cuda") for axis in (0, 1)
            )
            assert affine._has_kernel(x, of_first)
            assert not affine._has_kernel(x, of_second[:, :5])
            assert not affine._has_kernel(x.transpose(0, 1).contiguous().transpose(0, 1), of_first)
