"""Images are decoded once, if they fit in memory."""

import pytest
import torch
from support.detect.sweeps import run_sweep

from ssql_det.d2 import DatasetMapper
from ssql_det.detect.evaluation_data import CachedLoader


class Loader:
    """Four batches of 100 bytes; counts how often each is decoded."""

    def __init__(self):
        self.decoded = 0

    def __len__(self):
        return 4

    def __iter__(self):
        for index in range(4):
            self.decoded += 1
            yield [{"image": torch.full((100,), index, dtype=torch.uint8)}]


def values(images):
    return [int(batch[0]["image"][0]) for batch in images]


@pytest.mark.parametrize(("memory", "decoded"), [(400, 4), (None, 4), (399, 12), (0, 12)])
def test_images_are_decoded_once_if_all_fit_in_memory(memory, decoded):
    loader = Loader()
    images = CachedLoader(loader, memory)
    for _ in range(3):
        assert values(images) == [0, 1, 2, 3]
    assert len(images) == 4
    assert loader.decoded == decoded
    assert len(images._cache) == (4 if decoded == 4 else 0)


@pytest.mark.parametrize("memory", [400, None])
def test_reading_the_first_batch_decodes_no_other(memory):
    loader = Loader()
    images = CachedLoader(loader, memory)
    assert next(iter(images))[0]["image"][0] == 0
    for _ in range(3):
        assert values(images) == [0, 1, 2, 3]
    assert loader.decoded <= 5


def test_a_sweep_decodes_each_image_of_the_test_set_once(learned, monkeypatch, tmp_path):
    seen = []
    call = DatasetMapper.__call__

    def counted(self, record):
        seen.append(record["file_name"])
        return call(self, record)

    monkeypatch.setattr(DatasetMapper, "__call__", counted)
    run_sweep(learned, tmp_path, "FP,8,4")
    tested = 15
    assert len(seen) <= 4 + tested + 1  # to calibrate; to evaluate; the first once more for its cost


def test_batches_have_no_random_access():
    with pytest.raises(TypeError, match="iterate"):
        CachedLoader(Loader())[0]
