import pytest
from toy_names import toy_names_at


@pytest.fixture(autouse=True)
def calm(one_thread, logging_as_it_was):
    """In every test of this folder."""


@pytest.fixture(scope="module", autouse=True)
def toy_data_in_place(toy):
    """The toy names, registered again under the folder that was just made."""
    with toy_names_at(toy):
        yield
