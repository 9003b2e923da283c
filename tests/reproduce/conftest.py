"""What the tests of this folder share."""

import pytest
from support.reproduce.plans import Fake

from ssql_det.reproduce import runner


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Steps that take no time, looked at often."""
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.005)
    return Fake(tmp_path)
