import pytest
from support.pretrain.runs import StoppedError, config

from ssql_det.pretrain.checkpoint import TrainingState
from ssql_det.pretrain.loop import pretrain


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    pretrain(config(toy, folder))
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """Makes a run that is stopped right behind the checkpoint of so many steps."""
    save = TrainingState.save

    def run(cfg, stop):
        def stopping(self, folder, steps):
            save(self, folder, steps)
            if steps == stop:
                raise StoppedError

        with monkeypatch.context() as patch:
            patch.setattr(TrainingState, "save", stopping)
            with pytest.raises(StoppedError):
                pretrain(cfg)

    return run
