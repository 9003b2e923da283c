import pytest
import torch
from support.detect.configs import C4, config
from support.detect.sweeps import swept
from support.toy_datasets import toy_names_at

from ssql_det.detect.train import train


@pytest.fixture(autouse=True)
def calm(one_thread, logging_as_it_was):
    """In every test of this folder."""


@pytest.fixture(scope="module", autouse=True)
def toy_data_in_place(toy):
    """The toy names, registered again under the folder that was just made."""
    with toy_names_at(toy):
        yield


@pytest.fixture(scope="module")
def in_two(in_process, tmp_path_factory):
    """Runs a function of ``two_processes`` in both, in a folder that is made for it."""

    def run(work, *more, processes=2, folder=None):
        folder = folder or tmp_path_factory.mktemp(work)
        done = in_process(
            [folder, *more], folder / "log", work=f"support.detect.processes:{work}", processes=processes, seconds=300
        )
        assert done["status"] == 0, (folder / "log").read_text()
        return folder

    return run


@pytest.fixture(scope="session")
def whole_run(toy, tmp_path_factory):
    """A training that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    with toy_names_at(toy):  # a session's fixtures come before those of its modules
        assert train(config(C4, folder), C4) == folder / "model_final.pth"
    return folder


@pytest.fixture(scope="session")
def learned(toy, tmp_path_factory):
    """Weights of a detector that has learned a little."""
    folder = tmp_path_factory.mktemp("learned")
    torch.set_num_threads(1)
    keys = {"SOLVER__MAX_ITER": 45, "SOLVER__STEPS": (), "SOLVER__BASE_LR": 0.02, "SOLVER__IMS_PER_BATCH": 4}
    with toy_names_at(toy):
        return train(config(C4, folder, **keys), C4)


@pytest.fixture(scope="session")
def whole_sweep(toy, learned, tmp_path_factory):
    """The folder of a sweep of them, and its rows."""
    folder = tmp_path_factory.mktemp("whole_sweep")
    with toy_names_at(toy):
        return folder, swept(learned, folder)
