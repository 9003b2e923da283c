"""The toy data sets' names, for a folder that was just made."""

from contextlib import contextmanager

import pytest

from ssql_det import d2


@contextmanager
def toy_names_at(folder):
    """The names registered again, so that they are read below ``folder``; as they were at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        _register_again()
        yield
    _register_again()


def _register_again():
    for name in [name for name in d2.DatasetCatalog.list() if name.startswith("toy_")]:
        d2.DatasetCatalog.remove(name)
        d2.MetadataCatalog.remove(name)
    d2.register_toy_data()
