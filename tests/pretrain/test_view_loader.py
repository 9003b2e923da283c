"""The view loader: batches depend on seed and position alone, not on workers, processes or where it starts."""

import itertools
import logging
import random
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ssql_det.core.errors import UserError
from ssql_det.core.rng import derive_seed, seeded_rng
from ssql_det.pretrain.data import CachedDataset, ImageDataset, open_images
from ssql_det.pretrain.view_loader import BadImageCounter, ViewBatch, build_view_loader, steps_per_epoch

pytestmark = pytest.mark.slow

crop = v2.Compose([v2.RandomResizedCrop(8, scale=(0.2, 1)), v2.PILToTensor()])


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def draw_as_pixels(image):
    """The image's number and random numbers of every generator, as pixels."""
    draws = [random.randrange(256), np.random.randint(256), torch.randint(256, ()).item()]
    return torch.tensor([image.getpixel((0, 0))[0], *draws, 0, 0], dtype=torch.uint8).view(3, 1, 2)


class Painted:
    """Reads images whose colour is their number; those in ``bad`` cannot be read."""

    def __init__(self, bad=()):
        self.bad = frozenset(bad)

    def __call__(self, index):
        if index in self.bad:
            raise OSError(f"torn\nat {index}")
        return Image.new("RGB", (2, 2), (index % 256, index // 256, 0))


def painted(count, bad=()):
    return ImageDataset("painted", tuple(f"image {index}" for index in range(count)), Painted(bad))


def load(images, count, transform=to_tensor, size=4, seed=5, **more):
    return list(itertools.islice(build_view_loader(images, transform, size, seed, **more), count))


def to_lists(batches):
    return [([view.tolist() for view in batch.views], batch.positions, batch.bad_files) for batch in batches]


def numbers(batch, view=0):
    """The indices of the images of :func:`painted` in a batch."""
    pixels = batch.views[view][:, :, 0, 0].long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def generators():
    return random.getstate(), tuple(map(str, np.random.get_state())), torch.get_rng_state().tolist()


def disturb():
    random.random(), np.random.rand(), torch.rand(3)


@pytest.fixture(scope="module")
def crops(toy):
    return open_images(str(toy / "crops"))


@pytest.fixture(scope="module")
def all_batches(crops):
    return to_lists(load(crops, 30, crop, size=10))  # seven epochs and a half: 48 images, four batches an epoch


# ---- a function of seed and position -------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "workers"), [(0, 0), (1, 0), (3, 0), (4, 0), (13, 0), (0, 2), (5, 1), (6, 2)])
def test_workers_and_the_start_do_not_change_the_batches(first, workers, crops, all_batches):
    disturb()
    loaded = load(crops, 30 - first, crop, size=10, first_batch=first, workers=workers)
    assert to_lists(loaded) == all_batches[first:]


def test_cached_images_give_the_same_batches(crops, all_batches):
    assert to_lists(load(CachedDataset(crops), 30, crop, size=10)) == all_batches


def test_another_seed_gives_other_batches():
    ours, other = load(painted(40), 10), load(painted(40), 10, seed=6)
    assert [numbers(batch) for batch in ours] != [numbers(batch) for batch in other]


def test_the_global_generators_do_not_matter(crops, all_batches):
    batches = build_view_loader(crops, crop, 10, 5)
    loaded = []
    for _ in range(6):
        disturb()
        loaded.append(next(batches))
    assert to_lists(loaded) == all_batches[:6]


def test_a_late_start_skips_earlier_epochs():
    indices = []

    def read(index):
        indices.append(index)
        return Painted()(index)

    images = ImageDataset("painted", ("",) * 10, read)
    [batch] = load(images, 1, first_batch=10**12 + 1)
    assert batch.positions == tuple(range(4 * 10**12 + 4, 4 * 10**12 + 8))
    assert indices == numbers(batch)


@pytest.mark.parametrize("view", [0, 1, 2])
def test_randomness_depends_on_seed_position_and_view(view):
    for batch in load(painted(9), 5, draw_as_pixels, num_views=3):
        assert len(batch.views) == 3
        for position, loaded in zip(batch.positions, batch.views[view], strict=True):
            image = Image.new("RGB", (1, 1), (int(loaded.flatten()[0]), 0, 0))
            with seeded_rng(5, position, view):
                assert torch.equal(loaded, draw_as_pixels(image))


def test_the_order_is_a_permutation_by_seed_and_epoch():
    batches = load(painted(11), 6)
    for epoch in range(3):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(derive_seed(5, "epoch", epoch))).tolist()
        assert numbers(batches[2 * epoch]) + numbers(batches[2 * epoch + 1]) == order[:8]


def test_views_differ(crops):
    for batch in load(crops, 4, crop, size=10):
        first, second = batch.views
        assert first.dtype == second.dtype == torch.uint8
        assert first.shape == second.shape == (10, 3, 8, 8)
        assert all(not torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_an_image_has_new_views_in_each_epoch():
    batches = load(painted(1), 20, draw_as_pixels, size=1)
    assert len({tuple(view.flatten().tolist()) for batch in batches for view in batch.views}) == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_restored(workers):
    before = generators()
    batches = build_view_loader(painted(9), draw_as_pixels, 4, 5, workers=workers)
    assert generators() == before
    for _ in range(5):
        next(batches)
    assert generators() == before


def interruptible(image):
    return torch.full((3, 1, 1), signal.getsignal(signal.SIGINT) is not signal.SIG_IGN, dtype=torch.uint8)


def test_workers_ignore_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it as well
    try:
        for workers in (0, 1):
            [batch] = load(painted(4), 1, interruptible, workers=workers)
            assert batch.views[0].any() == (workers == 0)
    finally:
        signal.signal(signal.SIGINT, before)


# ---- epochs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(8, 4), (11, 4), (7, 7), (5, 1), (300, 128)])
def test_an_epoch_has_each_image_at_most_once_in_an_order_of_its_own(count, size):
    steps, epochs = steps_per_epoch(count, size), 4
    assert steps == count // size
    batches = load(painted(count), steps * epochs, size=size)
    assert [position for batch in batches for position in batch.positions] == list(range(steps * epochs * size))
    orders = []
    for epoch in range(epochs):
        order = list(itertools.chain(*map(numbers, batches[epoch * steps : (epoch + 1) * steps])))
        assert len(set(order)) == len(order) == steps * size
        assert set(order) <= set(range(count))
        orders.append(tuple(order))
    assert len(set(orders)) == epochs


def test_each_epoch_leaves_out_other_images():
    batches = load(painted(11), 40)
    assert {number for batch in batches for number in numbers(batch)} == set(range(11))


# ---- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("first", [0, 3])
def test_processes_share_each_batch_in_rank_order(world, first):
    unsplit = load(painted(19), 6, draw_as_pixels, size=8, first_batch=first)
    parts = [
        load(painted(19), 6, draw_as_pixels, size=8, first_batch=first, rank=rank, world_size=world)
        for rank in range(world)
    ]
    for batch, shares in zip(unsplit, zip(*parts, strict=True), strict=True):
        assert [len(share.positions) for share in shares] == [8 // world] * world
        assert sum((share.positions for share in shares), ()) == batch.positions
        for view in range(2):
            assert torch.equal(torch.cat([share.views[view] for share in shares]), batch.views[view])


@pytest.mark.parametrize(
    ("size", "world", "message"),
    [
        (0, 1, "a batch of 0 cannot be split over 1 process"),
        (-4, 2, "a batch of -4 cannot"),
        (6, 4, "a batch of 6 cannot be split over 4 processes; use a multiple of 4"),
        (12, 1, "painted has 11 images, too few for a batch of 12; reduce"),
    ],
)
def test_an_invalid_batch_size_is_refused_before_reading(size, world, message):
    with pytest.raises(UserError, match=message):
        build_view_loader(painted(11), to_tensor, size, 0, world_size=world)


# ---- bad images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_good_image_replaces_a_bad_one(workers):
    good, torn = load(painted(8), 4), load(painted(8, {2, 3, 7}), 4, workers=workers)
    substitutes = {2: 4, 3: 4, 7: 0}
    for batch, other in zip(good, torn, strict=True):
        indices = numbers(batch)
        assert numbers(other) == [substitutes.get(number, number) for number in indices]
        assert other.positions == batch.positions
        bad = {2: [2, 3], 3: [3], 7: [7]}
        named = dict.fromkeys(f"image {each}" for number in indices for each in bad.get(number, ()))
        assert other.bad_files == tuple(named)  # once each, in the order in which they were met


def test_a_substitute_has_the_randomness_of_its_position():
    [batch] = load(painted(4, {0, 1, 3}), 1, draw_as_pixels)
    for view in range(2):
        for position, loaded in zip(batch.positions, batch.views[view], strict=True):
            with seeded_rng(5, position, view):
                assert torch.equal(loaded, draw_as_pixels(Image.new("RGB", (1, 1), (2, 0, 0))))


def test_truncated_and_missing_files_are_replaced(tmp_path):
    for index in range(6):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    images = open_images(str(tmp_path))
    (tmp_path / "4.png").unlink()
    [batch] = load(images, 1, size=6)
    assert sorted(numbers(batch)) == [0, 2, 2, 3, 5, 5]
    assert set(batch.bad_files) == {str(tmp_path / "1.png"), str(tmp_path / "4.png")}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("count", "named"), [(3, 3), (100, 100), (400, 100)])
def test_without_a_readable_image_there_is_one_error(workers, count, named):
    with pytest.raises(UserError) as stop:
        load(painted(count, range(count)), 1, size=2, workers=workers)
    first = str(stop.value).split("starting with ")[1].split(" (")[0]
    number = first.removeprefix("image ")
    assert str(stop.value) == (
        f"{named} images in a row cannot be read, starting with {first} (OSError: torn at {number}); "
        "repair the files, or use other data"
    )


def test_100_bad_images_in_a_row_are_too_many_and_99_are_not():
    load(painted(200, range(99)), 50)
    with pytest.raises(UserError, match="100 images in a row cannot be read, starting with image 0"):
        load(painted(200, range(100)), 50)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_transform_is_an_error_of_its_own(workers):
    with pytest.raises(UserError, match=r"image \d: the transform failed: TypeError: 'int' object is not callable"):
        load(painted(9), 1, transform=3, workers=workers)


def batch_of(*bad):
    return ViewBatch((), (), bad)


def test_each_bad_image_is_named_once_and_counted(caplog):
    counter = BadImageCounter(2)
    with caplog.at_level(logging.WARNING, "ssql_det"):
        for bad in ((), ("a.jpg",), ("a.jpg", "b\n.jpg"), ("b\n.jpg", "a.jpg")):
            counter.update(batch_of(*bad))
    assert [record.getMessage() for record in caplog.records] == [
        "a.jpg cannot be read, the next image is used instead (1 so far)",
        "b\\n.jpg cannot be read, the next image is used instead (2 so far)",
    ]
    assert counter.files == {"a.jpg", "b\n.jpg"}


@pytest.mark.parametrize("max_files", [0, 1, 3])
def test_more_bad_images_than_the_limit_end_the_run(max_files, caplog):
    counter = BadImageCounter(max_files)
    counter.update(batch_of(*(f"{index}.jpg" for index in range(max_files))))
    with pytest.raises(UserError) as stop:
        counter.update(batch_of("last.jpg", "later.jpg"))
    message = str(stop.value)
    assert message.startswith(
        f"last.jpg cannot be read ({max_files + 1} so far); DATA.MOST_BAD_IMAGES allows {max_files}: "
    )
    assert "later" not in message
    assert len(caplog.records) == max_files + 1
