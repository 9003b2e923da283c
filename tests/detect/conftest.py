import pytest
import torch

from ssql_det import d2


@pytest.fixture(autouse=True)
def one_thread():
    """Two would wait for each other wherever a core is busy, and one gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch):
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)


@pytest.fixture(scope="module", autouse=True)
def toy_data_in_place(toy):
    """The toy names, registered again under the folder that was just made."""
    names = [name for name in d2.DatasetCatalog.list() if name.startswith("toy_")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(toy))
        for name in names:
            d2.DatasetCatalog.remove(name)
            d2.MetadataCatalog.remove(name)
        d2.register_toy_data()
        yield
