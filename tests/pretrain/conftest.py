import pytest
from pretrain.runs import config

from ssql_det.pretrain.loop import pretrain


@pytest.fixture(scope="module")
def whole(toy, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    pretrain(config(toy, folder))
    return folder
