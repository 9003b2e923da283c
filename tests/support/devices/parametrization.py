"""Run a test on the CPU and, where there is one, on a GPU."""

import pytest
import torch
from support.devices.comparison import full_float32

_CUDA = pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
on_each_device = pytest.mark.parametrize("device", [torch.device("cpu"), _CUDA], ids=["cpu", "cuda"])


def assert_kept(results):
    """There are results of a check, and none exceeds its limit."""
    with full_float32():
        results = [*results]
    assert results
    assert not [str(result) for result in results if not result.is_kept]
