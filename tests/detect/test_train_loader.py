"""The loader of training images: batches depend on the seed and their number alone."""

import itertools
import logging
import random
import re
import shutil

import numpy as np
import pytest
import torch
from support.detect.configs import C4, FPN, config

from ssql_det import d2
from ssql_det.core.errors import UserError
from ssql_det.detect.train_loader import AspectRatioBatchSampler, BadImageLog, SeededDataset, build_train_loader

TRAIN = "toy_voc_2007_trainval"


def take_batches(cfg, count, seed=5, first=0):
    return list(itertools.islice(build_train_loader(cfg, seed, first), count))


def comparable(batches):
    """The content of batches in values that can be compared."""
    return [
        [
            (
                each["file_name"],
                each["image"].tolist(),
                each["instances"].gt_boxes.tensor.tolist(),
                each["instances"].gt_classes.tolist(),
            )
            for each in batch
        ]
        for batch in batches
    ]


def generator_states():
    return random.getstate(), tuple(map(str, np.random.get_state())), torch.get_rng_state().tolist()


def use_generators():
    random.random(), np.random.rand(), torch.rand(3)


@pytest.fixture(scope="module")
def expected_batches():
    return comparable(take_batches(config(C4), 8))


# ---- a function of seed and position -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_batches_do_not_depend_on_workers_or_the_start(workers, first, expected_batches):
    use_generators()
    got = take_batches(config(C4, DATALOADER__NUM_WORKERS=workers), 8 - first, first=first)
    assert comparable(got) == expected_batches[first:]


def test_another_seed_gives_other_batches(expected_batches):
    assert comparable(take_batches(config(C4), 8, seed=6)) != expected_batches


def test_global_generators_do_not_matter(expected_batches):
    batches = build_train_loader(config(C4), 5)
    got = []
    for _ in range(4):
        use_generators()
        got.append(next(batches))
    assert comparable(got) == expected_batches[:4]


def test_masks_are_loaded_with_mask_on():
    first = [each["instances"].gt_masks.polygons for batch in take_batches(config(FPN), 3) for each in batch]
    again = [each["instances"].gt_masks.polygons for batch in take_batches(config(FPN), 2, first=1) for each in batch]
    assert len(again) == 4
    for ours, theirs in zip(again, first[2:], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True))


def test_an_image_is_augmented_differently_at_each_position():
    records = d2.get_detection_dataset_dicts((TRAIN,))[:1]
    make_dataset = SeededDataset(records, d2.DatasetMapper(config(C4), True), seed=0)
    forms = {(image.shape, image.numpy().tobytes()) for image in (make_dataset[n, 0]["image"] for n in range(20))}
    assert len(forms) == 4  # two sizes, flipped and not
    assert torch.equal(make_dataset[7, 0]["image"], make_dataset[7, 0]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_mapping_leaves_the_global_generators_as_they_are(workers):
    batches = build_train_loader(config(C4, DATALOADER__NUM_WORKERS=workers), 5)
    before = generator_states()
    for _ in range(3):
        next(batches)
    assert generator_states() == before


def test_starting_leaves_the_global_generators_as_they_are():
    before = generator_states()
    build_train_loader(config(C4), 5)
    assert generator_states() == before


# ---- batches -------------------------------------------------------------------------------------------------------


def sample_indices(wide, batch_size, count, **options):
    return list(itertools.islice(AspectRatioBatchSampler(wide, batch_size, **({"seed": 3} | options)), count))


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("wide", [[True] * 7, [index % 3 > 0 for index in range(20)], [True] * 9 + [False]])
def test_a_batch_is_wide_or_tall(wide, size):
    for batch in sample_indices(wide, size, 30):
        assert len(batch) == size
        assert len({wide[index] for _, index in batch}) == 1


@pytest.mark.parametrize("size", [1, 3, 4])
def test_every_record_comes_once_an_epoch(size):
    wide, epochs = [index % 3 > 0 for index in range(20)], 5
    places = sorted(itertools.chain.from_iterable(sample_indices(wide, size, 20 * (epochs + 1) // size)))
    assert len({position for position, _ in places}) == len(places)
    orders = []
    for epoch in range(epochs):
        order = [index for position, index in places if position // 20 == epoch]
        assert sorted(order) == list(range(20))
        orders.append(order)
    assert len(set(map(tuple, orders))) == epochs  # each in an order of its own


@pytest.mark.parametrize("first", [0, 1, 7, 40])
def test_a_later_start_gives_the_remaining_batches(first):
    wide = [index % 3 > 0 for index in range(20)]
    assert sample_indices(wide, 3, 10, first_batch=first) == sample_indices(wide, 3, first + 10)[first:]
    assert sample_indices(wide, 3, 10) != sample_indices(wide, 3, 10, seed=4)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_each_batch_of_one_process(world):
    wide = [index % 3 > 0 for index in range(20)]
    shares = [sample_indices(wide, 6, 10, first_batch=2, rank=rank, world_size=world) for rank in range(world)]
    for whole, *parts in zip(sample_indices(wide, 6, 10, first_batch=2), *shares, strict=True):
        assert {len(part) for part in parts} == {6 // world}
        assert sorted(itertools.chain.from_iterable(parts)) == sorted(whole)


def test_images_of_a_batch_are_all_wide_or_all_tall():
    sides = [
        [each["image"].shape[1:] for each in batch] for batch in take_batches(config(C4, SOLVER__IMS_PER_BATCH=3), 12)
    ]
    lying = [{width > height for height, width in batch} for batch in sides]
    assert all(len(each) == 1 for each in lying)
    assert len(set(map(tuple, lying))) == 2


# ---- bad images ----------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged_dataset(tmp_path):
    """Six records of the toy data, two of them with files that are torn or not there; a data set of that name."""
    records = [dict(each) for each in d2.get_detection_dataset_dicts((TRAIN,))[:6]]
    torn = tmp_path / "torn.jpg"
    shutil.copy(records[2]["file_name"], torn)
    torn.write_bytes(torn.read_bytes()[:100])
    records[2]["file_name"], records[3]["file_name"] = str(torn), str(tmp_path / "missing.jpg")
    d2.DatasetCatalog.register("broken", lambda: records)
    d2.MetadataCatalog.get("broken").thing_classes = d2.MetadataCatalog.get(TRAIN).thing_classes
    yield records
    d2.DatasetCatalog.remove("broken")
    d2.MetadataCatalog.remove("broken")


def make_dataset(records, policy):
    return SeededDataset(records, d2.DatasetMapper(config(C4), True), seed=0, on_bad_image=policy)


@pytest.mark.parametrize(("index", "name"), [(2, "torn.jpg"), (3, "missing.jpg")])
def test_a_bad_image_is_an_error_with_its_name(index, name, damaged_dataset):
    before = generator_states()
    why = make_dataset(damaged_dataset, "stop")[0, index]["error"]
    assert re.match(rf"cannot train on \S*{name}: .*; repair or remove it, or set SSQL_DET\.ON_BAD", why)
    assert generator_states() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_sentence(workers, damaged_dataset):
    cfg = config(C4, DATASETS__TRAIN=("broken",), DATALOADER__NUM_WORKERS=workers)
    with pytest.raises(UserError) as stop:
        take_batches(cfg, 6)
    assert str(stop.value).startswith("cannot train on ")
    assert "\n" not in str(stop.value)


def test_a_bad_image_is_replaced_by_the_next_good_one(damaged_dataset):
    skipping = make_dataset(damaged_dataset, "skip")
    for index, bad in ((2, [2, 3]), (3, [3])):
        sample = skipping[11, index]
        assert sample["bad_images"] == [damaged_dataset[each]["file_name"] for each in bad]
        assert sample["file_name"] == damaged_dataset[4]["file_name"]
        assert torch.equal(sample["image"], skipping[11, 4]["image"])  # drawn as for that place
    assert "bad_images" not in skipping[11, 4]


def test_the_last_image_is_replaced_by_the_first(damaged_dataset):
    records = [damaged_dataset[0], damaged_dataset[1], damaged_dataset[2]]
    assert make_dataset(records, "skip")[0, 2]["file_name"] == damaged_dataset[0]["file_name"]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_bad_image_is_logged_once_and_counted(workers, damaged_dataset, caplog):
    cfg = config(C4, DATASETS__TRAIN=("broken",), DATALOADER__NUM_WORKERS=workers, SSQL_DET__ON_BAD_IMAGE="skip")
    bad = BadImageLog()
    with caplog.at_level(logging.WARNING, "ssql_det"):
        for batch in take_batches(cfg, 12):  # four times through
            bad.log_skipped_images(batch)
            assert not any("bad_images" in sample for sample in batch)
    assert bad.names == {damaged_dataset[2]["file_name"], damaged_dataset[3]["file_name"]}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all(sum(name in line for line in said) == 1 for name in bad.names)
    assert "(2 so far)" in said[1]


def test_many_bad_images_in_a_row_are_an_error(damaged_dataset):
    why = make_dataset(damaged_dataset[2:4], "skip")[0, 0]["error"]
    assert re.match(r"100 images in a row cannot be read, from \S*torn\.jpg on", why)


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match=r"SSQL_DET\.ON_BAD_IMAGE must be stop or skip, got 'ignore'"):
        build_train_loader(config(C4, SSQL_DET__ON_BAD_IMAGE="ignore"), 0)
