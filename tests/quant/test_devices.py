"""Quantizers and contexts give the same numbers on each device, in any memory format."""

import pytest
from support.devices import contexts, quantizers
from support.devices.parametrization import assert_kept, on_each_device

CHECKS = {**contexts.CHECKS, **quantizers.CHECKS}


@on_each_device
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_device_equals_the_cpu(check, device):
    assert_kept(check(device))
