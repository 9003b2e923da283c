"""What the environment says of a process group, and ranks that do not answer."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssql_det.core.errors import UserError
from ssql_det.core.launch import launch

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def set_environment(monkeypatch, **given):
    for name, value in given.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"WORLD_SIZE": None},
            "RANK or WORLD_SIZE is set in the environment, but WORLD_SIZE is not; start the processes",
        ),
        ({"RANK": None}, "RANK or WORLD_SIZE is set in the environment, but RANK is not"),
        ({"MASTER_ADDR": None}, "but MASTER_ADDR is not"),
        ({"MASTER_PORT": ""}, "but MASTER_PORT is not"),
        ({"MASTER_PORT": "http"}, "the environment variable MASTER_PORT must be a number, got 'http'"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "the environment has RANK 0 and WORLD_SIZE 0; ranks count from 0"),
        ({"RANK": "2"}, "the environment has RANK 2 and WORLD_SIZE 2"),
        ({"RANK": "-1"}, "the environment variable RANK must be a number, got '-1'"),
        ({"WORLD_SIZE": "²"}, "the environment variable WORLD_SIZE must be a number, got '²'"),
        ({"SSQL_DET_TIMEOUT": "never"}, "SSQL_DET_TIMEOUT must be a number of seconds above 0, got 'never'"),
        ({"SSQL_DET_TIMEOUT": "nan"}, "SSQL_DET_TIMEOUT must be a number of seconds above 0, got 'nan'"),
    ],
)
def test_an_environment_that_describes_no_group_is_refused(change, expected, monkeypatch):
    set_environment(monkeypatch, **WHOLE | change)
    with ThreadPoolExecutor(1) as thread, pytest.raises(UserError, match=expected):  # handlers stay as they are
        thread.submit(launch, print).result()


@pytest.mark.parametrize("number", ["0", "1"], ids=["rank 0 waits", "rank 1 asks"])
def test_an_address_where_nobody_answers_is_named_after_a_time_out(number, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    set_environment(monkeypatch, **WHOLE | {"RANK": number, "MASTER_PORT": port, "SSQL_DET_TIMEOUT": "0.5"})
    expected = rf"rank {number} of 2 did not find the others at 127.0.0.1:{port} \(MASTER_ADDR:MASTER_PORT\) in 0.5 s"
    with ThreadPoolExecutor(1) as thread, pytest.raises(UserError, match=expected):
        thread.submit(launch, print).result()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_ends_all_with_its_name(frozen, in_process, tmp_path):
    log = tmp_path / "log"
    ended = in_process([frozen], log, work="support.core.freezing_ranks:start")
    assert (ended["status"], ended["seconds"] < 30) == (2, True), log.read_text()
    name = f"rank {frozen} on {socket.gethostname()}"
    name += "|the store of the processes at 127.0.0.1:[0-9]+" if frozen == 0 else ""  # rank 0 has the store
    sentence = rf"error: ({name}) has not answered for 4 s: its process or machine is frozen"
    assert re.search(sentence, log.read_text()), log.read_text()
