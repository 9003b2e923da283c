import pytest

from ssql_det import d2


@pytest.fixture(autouse=True)
def calm(one_thread, logging_as_it_was):
    """In every test of this folder."""


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
