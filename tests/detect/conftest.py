import pytest
from support.detect.configs import C4, config
from support.detect.sweeps import run_sweep
from support.toy_datasets import toy_names_at

from ssql_det.core import rows
from ssql_det.detect.train import train


@pytest.fixture(autouse=True)
def calm(logging_as_it_was):
    """In every test of this folder."""


@pytest.fixture(scope="module", autouse=True)
def toy_data_in_place(toy):
    """The toy names, registered again under the folder that was just made."""
    with toy_names_at(toy):
        yield


@pytest.fixture(scope="module")
def run_in_processes(in_process, tmp_path_factory):
    """Runs a function of ``support.detect.processes`` in two processes, in a new folder."""

    def run(work, *more, processes=2, folder=None):
        folder = folder or tmp_path_factory.mktemp(work)
        done = in_process(
            [folder, *more], folder / "log", work=f"support.detect.processes:{work}", processes=processes, seconds=300
        )
        assert done["status"] == 0, (folder / "log").read_text()
        return folder

    return run


@pytest.fixture(scope="session")
def whole_run(toy, made_once):
    """A training that was never interrupted."""
    return made_once("whole-run", lambda folder: trained(toy, folder))


@pytest.fixture(scope="session")
def learned(toy, made_once):
    """Weights of a detector after a short training."""
    keys = {"SOLVER__MAX_ITER": 45, "SOLVER__STEPS": (), "SOLVER__BASE_LR": 0.02, "SOLVER__IMS_PER_BATCH": 4}
    return made_once("learned", lambda folder: trained(toy, folder, **keys)) / "model_final.pth"


def trained(toy, folder, **keys):
    with toy_names_at(toy):  # a session's fixtures come before those of its modules
        assert train(config(C4, folder, **keys), C4) == folder / "model_final.pth"


@pytest.fixture(scope="session")
def whole_sweep(toy, learned, made_once):
    """The folder of a sweep of these weights, and its rows."""

    def sweep_whole(folder):
        with toy_names_at(toy):
            run_sweep(learned, folder)

    folder = made_once("whole-sweep", sweep_whole)
    return folder, rows.read_rows(folder / "results.jsonl")
