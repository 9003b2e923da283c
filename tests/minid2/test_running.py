"""What surrounds a training loop: TensorBoard's files, logs, set-up, seeds; and the group of two processes."""

import contextlib
import importlib
import io
import json
import logging
import os
import socket
from argparse import Namespace
from unittest import mock

import numpy as np
import pytest
import torch
from support.minid2 import running_worker
from support.minid2.running import restoring_loggers

from ssql_det.minid2.config import get_cfg
from ssql_det.minid2.engine import default_argument_parser, default_setup, launch
from ssql_det.minid2.utils.env import seed_all_rng
from ssql_det.minid2.utils.events import CommonMetricPrinter, EventStorage, TensorboardXWriter
from ssql_det.minid2.utils.logger import ROOT, log_first_n, setup_logger

pytestmark = pytest.mark.slow


def test_tensorboard_reads_what_is_written(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorboardXWriter(str(tmp_path), flush_secs=1)
    with EventStorage(3) as storage:
        storage.put_scalar("loss", 2.5)
        storage.put_image("picture", np.zeros((3, 4, 5), np.uint8))
        storage.put_histogram("weights", torch.arange(10.0), bins=5)
        writer.write()
    writer.close()
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(3, 2.5)]
    assert events.Images("picture")[0].width == 5
    assert events.Histograms("weights")[0].histogram_value.num == 10


def test_a_line_of_the_log_names_the_gpus_memory(caplog):
    with (
        caplog.at_level(logging.INFO, ROOT),
        EventStorage() as storage,
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.max_memory_allocated", return_value=3 * 2**20),
    ):
        storage.put_scalar("time", 1.0)
        CommonMetricPrinter(11).write()
    assert " ".join(caplog.messages[0].split()) == (
        "eta: 0:00:10 iter: 0 time: 1.0000 last_time: 1.0000 lr: N/A max_mem: 3M"
    )


def test_help():
    with contextlib.redirect_stdout(io.StringIO()) as screen, pytest.raises(SystemExit) as stop:
        default_argument_parser().parse_args(["--help"])
    assert stop.value.code == 0
    assert all(word in screen.getvalue() for word in ("--config-file FILE", "--machine-rank 1", "opts"))


def test_set_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    cfg = get_cfg()
    with restoring_loggers(ROOT, "fvcore"), contextlib.redirect_stdout(io.StringIO()) as screen:
        cfg.OUTPUT_DIR = ""
        default_setup(cfg, Namespace())
        assert not list(tmp_path.iterdir())
        assert "drew" in screen.getvalue()  # the seed
        cfg.OUTPUT_DIR = out = os.fsdecode(b"out\xff")
        (tmp_path / "given.yaml").write_text("SEED: 5 # as given")
        default_setup(cfg, Namespace(config_file="given.yaml"))
        log = (tmp_path / out / "log.txt").read_text()
        assert "SEED: 5 # as given" in log
        assert torch.__version__ in log
        assert "Full config saved to out\\udcff" in log
        assert get_cfg().load_yaml_with_base(str(tmp_path / out / "config.yaml"))["OUTPUT_DIR"] == out
        with pytest.raises(FileNotFoundError, match=r"missing\.yaml"):
            default_setup(cfg, Namespace(config_file="missing.yaml"))


def test_precision(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", "", "FLOAT32_PRECISION", "highest"])
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        with (
            restoring_loggers(ROOT, "fvcore"),
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch("torch.cuda.is_available", return_value=True),
            mock.patch("torch.cuda.device_count", return_value=0),
            mock.patch("torch.set_float32_matmul_precision") as chosen,
        ):
            default_setup(cfg, Namespace())
            assert chosen.call_args.args == ("highest",)
            assert not torch.backends.cudnn.allow_tf32
            cfg.FLOAT32_PRECISION = "high"
            default_setup(cfg, Namespace())
            assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def test_seeds(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    seed_all_rng(3)
    first = [np.random.rand(), torch.rand(1).item()]
    seed_all_rng(3)
    assert [np.random.rand(), torch.rand(1).item()] == first
    seed_all_rng()
    drawn = torch.initial_seed()
    seed_all_rng()
    assert torch.initial_seed() != drawn


def test_a_message_once_for_each_line_of_code(caplog):
    with caplog.at_level(logging.INFO):
        for index in range(3):
            log_first_n(logging.INFO, f"here {index}")
            log_first_n(logging.INFO, f"there {index}")
    assert [(record.name, record.message) for record in caplog.records] == [(__name__, "here 0"), (__name__, "there 0")]


def test_loggers_share_a_file(tmp_path):
    with restoring_loggers("one", "two"):
        for name in ("one", "two"):
            setup_logger(str(tmp_path / "both.log"), name=name, configure_stdout=False)
            logging.getLogger(name).info("a line")
        one, two = (logging.getLogger(name).handlers for name in ("one", "two"))
        assert one[0].stream is two[0].stream
    assert [line.split("] ")[1] for line in (tmp_path / "both.log").read_text().splitlines()] == [
        "one INFO: a line",
        "two INFO: a line",
    ]


def test_several_machines_need_an_address():
    with pytest.raises(AssertionError, match="address of the first"):
        launch(print, 2, num_machines=2, dist_url="auto")


STARTED_BY = ("launch", "torchrun")


def in_two_processes(root, folder):
    """Each rank's answers by how the processes were started; on gloo also where there is a GPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        engine = importlib.import_module(f"{root}.engine")
        engine.launch(running_worker.run, 2, dist_url="auto", args=(root, folder, address))
    return {name: [json.loads((folder / f"{name} {rank}.json").read_text()) for rank in (0, 1)] for name in STARTED_BY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def pair(folder):
    return in_two_processes("ssql_det.minid2", folder)


@pytest.mark.parametrize("started", STARTED_BY)
def test_two_processes_tell_each_other(pair, started):
    first, second = pair[started]
    assert (first["world"], second["world"]) == ([2, 0, True], [2, 1, False])
    assert first["all"] == second["all"] == [{"rank": 0, "more": ""}, {"rank": 1, "more": "x"}]
    assert (first["on 0"], second["on 0"]) == ([0, 1], [])
    assert (first["on 1"], second["on 1"]) == ([], [[0], [1]])


def test_processes_of_one_machine_or_of_two(pair):
    assert [each["local"] for each in pair["launch"]] == [[2, 0], [2, 1]]
    assert [each["local"] for each in pair["torchrun"]] == [[1, 0], [1, 0]]
    assert [each["all local"] for each in pair["launch"]] == [[0, 1], [0, 1]]
    assert [each["all local"] for each in pair["torchrun"]] == [[0], [1]]
    assert "create_local_process_group" in pair["torchrun"][1]["complaint"]


@pytest.mark.parametrize("started", STARTED_BY)
def test_a_seed_is_shared_and_drawn_by_all(pair, started):
    first, second = pair[started]
    numbers = [np.random.RandomState(rank).randint(2**31, size=4).tolist() for rank in (0, 1)]
    assert first["seeds"] == second["seeds"] == numbers[0][:3]
    assert [first["drawn alone"], second["drawn alone"]] == [numbers[0][3], numbers[1][3]]


def test_scalars_are_reduced_by_name(pair):
    assert pair["launch"][0]["reduced"] == [{"a": 5.0, "b": 1.5}, {"a": 10.0, "b": 3.0}]


def test_gradients_are_averaged(pair):
    assert [each["trained"] for each in pair["launch"]] == [["DistributedDataParallel", 1.5, 1.5]] * 2


def test_rank_0_writes(pair, folder):
    files = {path.name for path in (folder / "out").iterdir()}
    assert files == {"config.yaml", "log.txt", "log.txt.rank1", "last_checkpoint", "model.pth"}
    assert [each["written"] for each in pair["launch"]] == [{"seed": 3, "screen": True}, {"seed": 4, "screen": False}]


@pytest.mark.detectron2
def test_detectron2_finds_the_same_in_two_processes(pair, tmp_path):
    pytest.importorskip("detectron2.engine")
    theirs = in_two_processes("detectron2", tmp_path)
    for answers in (pair, theirs):
        assert all(each.pop("complaint") for each in answers["torchrun"])
    assert theirs == pair
