"""Generator states survive a round trip through a file, and a kill while saving leaves a readable file."""

import multiprocessing
import random
import time

import numpy as np
import pytest
import torch

from ssql_det.core.files import atomic_write
from ssql_det.core.rng import RngState
from ssql_det.core.unpickler import read_tensors


def save(path, content):
    with atomic_write(path) as file:
        torch.save(content, file)


def draw_numbers():
    return [random.random(), random.gauss(0, 1), *np.random.rand(3), np.random.randn(), *torch.rand(3), torch.randn(1)]


def test_restored_generators_repeat_their_stream(tmp_path):
    draw_numbers()  # an odd number of normal draws: the second half of a pair is cached in each generator
    save(tmp_path / "x.pth", vars(RngState.capture()))
    expected = draw_numbers()
    assert draw_numbers() != expected
    RngState(**read_tensors(tmp_path / "x.pth")).restore()
    assert draw_numbers() == expected


def save_until_killed(path, started):
    for step in range(1_000_000):
        save(path, {"step": step, "weights": torch.full((300_000,), float(step))})
        started.set()


@pytest.mark.slow
def test_after_a_kill_while_saving_the_file_loads(tmp_path):
    fork = multiprocessing.get_context("fork")
    for attempt in range(8):
        started = fork.Event()
        writer = fork.Process(target=save_until_killed, args=(tmp_path / "x.pth", started))
        writer.start()
        started.wait()
        time.sleep(attempt * 0.003)
        writer.kill()
        writer.join()
        state = read_tensors(tmp_path / "x.pth")
        assert (state["weights"] == state["step"]).all()
