"""Memory formats by name and device, and the warning of a CPU without bfloat16."""

import pytest
import torch

from ssql_det.cli.arguments import MEMORY_FORMATS
from ssql_det.core.devices import MEMORY_FORMAT_NAMES, choose_memory_format, warn_if_bfloat16_is_slow
from ssql_det.core.errors import UserError


@pytest.mark.parametrize("name", MEMORY_FORMAT_NAMES)
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_is_channels_last_on_cpus_and_gpus(name, device):
    channels_last = name == "channels_last" or (name == "auto" and device != "mps")
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert choose_memory_format(name, torch.device(device), "MEMORY_FORMAT") == expected


def test_an_unknown_format_is_refused_with_the_most_similar_name():
    with pytest.raises(UserError, match=r"MEMORY_FORMAT 'channel_last' is unknown; did you mean 'channels_last'\?"):
        choose_memory_format("channel_last", torch.device("cpu"), "MEMORY_FORMAT")


def test_commands_offer_every_format():
    assert MEMORY_FORMATS == MEMORY_FORMAT_NAMES


@pytest.mark.parametrize(
    ("capabilities", "device", "is_warned"),
    [
        ({"avx2": True, "avx512_bf16": False}, "cpu", True),
        ({"avx2": True, "avx512_bf16": True}, "cpu", False),
        ({"neon": True, "bf16": True}, "cpu", False),
        ({"avx2": True}, "cuda", False),
    ],
)
def test_a_cpu_without_bfloat16_is_warned_of(capabilities, device, is_warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    warn_if_bfloat16_is_slow(torch.device(device), "AMP")
    assert ("AMP: this CPU has no bfloat16 instructions" in caplog.text) == is_warned
