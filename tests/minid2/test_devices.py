"""Detectors train and detect the same on each device, in any memory format."""

import pytest
from support.devices.detectors import CHECKS, SMALL
from support.devices.parametrization import assert_kept, on_each_device

pytestmark = pytest.mark.slow


@on_each_device
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_device_equals_the_cpu(check, device):
    assert_kept(check(device, SMALL))
