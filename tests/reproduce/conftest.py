"""What the tests of this folder share."""

import pytest
from support.reproduce.plans import FakeProgram

from ssql_det.reproduce import runner


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Steps that take no time, looked at often."""
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.005)
    return FakeProgram(tmp_path)
