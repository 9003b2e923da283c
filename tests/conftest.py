import pytest

from ssql_det.toydata.dataset import Settings, make_toy_data


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A small data set, made once."""
    return make_toy_data(tmp_path_factory.mktemp("toy") / "data", Settings(scenes=60, crops=60, seed=6), workers=2)
