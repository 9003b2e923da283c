"""The fixture of this folder's tests."""

import pytest
from support.reproduce.plans import FakeProgram

from ssql_det.reproduce import runner


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A program that takes no time, polled often."""
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.005)
    return FakeProgram(tmp_path)
