import multiprocessing
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssql_det.core.errors import UserError
from ssql_det.core.resume import DataPosition, ResumeState, RngState, load, save


def draws():
    return [random.random(), random.gauss(0, 1), *np.random.rand(3), np.random.randn(), *torch.rand(3), torch.randn(1)]


def test_restored_generators_repeat_their_stream(tmp_path):
    draws()  # an odd number of normal draws: the second half of a pair is waiting in each generator
    save(tmp_path / "x.pth", ResumeState(0, DataPosition(), [RngState.capture()]))
    expected = draws()
    assert draws() != expected
    load(tmp_path / "x.pth").rng[0].restore()
    assert draws() == expected


class Run:
    """A small training with everything that a resumed run could get wrong."""

    def __init__(self):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.7)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        self.data = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
        self.step, self.position = 0, DataPosition()

    def train(self, steps, batch=8):
        for _ in range(steps):
            if self.position.samples + batch > len(self.data):
                self.position = DataPosition(self.position.epoch + 1)
            order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.position.epoch))
            chosen = self.data[order[self.position.samples :][:batch]]
            noisy = chosen + random.gauss(0, 0.1) + torch.from_numpy(np.random.randn(*chosen.shape)).float()
            loss = F.cross_entropy(self.model(noisy), (chosen.sum(1) > 0).long())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step, self.position = self.step + 1, DataPosition(self.position.epoch, self.position.samples + batch)

    def save(self, path):
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        save(path, ResumeState(self.step, self.position, [RngState.capture()], parts))

    def resume(self, path):
        state = load(path)
        for name, part in self.parts.items():
            part.load_state_dict(state.parts[name])
        self.step, self.position = state.step, state.position
        state.rng[0].restore()


RESUME = f"""
import sys
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
import torch
from {__name__.rpartition(".")[2]} import Run
torch.set_num_threads(1)
run = Run()
torch.rand(99)
run.resume(sys.argv[1])
run.train(5)
run.save(sys.argv[2])
"""


def test_a_resumed_run_is_bit_for_bit_the_run_that_was_not_stopped(tmp_path):
    whole = Run()
    whole.train(8)
    whole.save(tmp_path / "whole.pth")
    first = Run()
    first.train(3)
    first.save(tmp_path / "first.pth")
    subprocess.run([sys.executable, "-c", RESUME, tmp_path / "first.pth", tmp_path / "second.pth"], check=True)
    expected, resumed = load(tmp_path / "whole.pth"), load(tmp_path / "second.pth")
    assert (resumed.step, resumed.position) == (expected.step, expected.position) == (8, DataPosition(3, 16))
    assert flat(resumed.parts) == flat(expected.parts)
    assert flat(vars(resumed.rng[0])) == flat(vars(expected.rng[0]))


def flat(thing):
    """Nested containers of tensors as containers of numbers, which ``==`` compares one by one."""
    if isinstance(thing, dict):
        return {key: flat(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [flat(value) for value in thing]
    return thing.tolist() if isinstance(thing, (torch.Tensor, np.ndarray)) else thing


def save_until_killed(path, started):
    for step in range(1_000_000):
        save(path, ResumeState(step, DataPosition(), [], {"weights": torch.full((300_000,), float(step))}))
        started.set()


def test_a_kill_while_saving_leaves_a_state_that_loads(tmp_path):
    fork = multiprocessing.get_context("fork")
    for moment in range(8):
        started = fork.Event()
        writer = fork.Process(target=save_until_killed, args=(tmp_path / "x.pth", started))
        writer.start()
        started.wait()
        time.sleep(moment * 0.003)
        writer.kill()
        writer.join()
        state = load(tmp_path / "x.pth")
        assert (state.parts["weights"] == state.step).all()


def test_a_full_disk_leaves_the_last_state(tmp_path, small_disk):
    path = tmp_path / "x.pth"
    save(path, ResumeState(1, DataPosition(), []))
    small_disk()
    with pytest.raises(UserError, match=f"could not write {path}"):
        save(path, ResumeState(2, DataPosition(), [], {"weights": torch.zeros(1_000_000)}))
    assert load(path).step == 1


FOREIGN = {
    "a state_dict": ({"weight": torch.zeros(2)}, "is not a resume state"),
    "a tensor": (torch.zeros(2), "is not a resume state"),
    "another format": ({"format": "theirs", "version": 1}, "is not a resume state"),
    "a newer version": ({"format": "ssql_det resume state", "version": 2}, "has version 2, .* update"),
}


@pytest.mark.parametrize(("content", "hint"), FOREIGN.values(), ids=FOREIGN)
def test_another_file_is_refused_in_one_sentence(content, hint, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"^{tmp_path / 'x.pth'} {hint}"):
        load(tmp_path / "x.pth")
