"""The stream of views: a function of the seed and the position, whoever asks, from where on and with how many."""

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
from ssql_det.pretrain.view_loader import BadImageCounter, Batch, build_view_loader, steps_per_epoch

crop = v2.Compose([v2.RandomResizedCrop(8, scale=(0.2, 1)), v2.PILToTensor()])


def whole(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def drawing(image):
    """The image's number and draws of every generator, as if they were pixels."""
    draws = [random.randrange(256), np.random.randint(256), torch.randint(256, ()).item()]
    return torch.tensor([image.getpixel((0, 0))[0], *draws, 0, 0], dtype=torch.uint8).view(3, 1, 2)


class Painted:
    """Reads an image of one colour, its number; some cannot be read."""

    def __init__(self, bad=()):
        self.bad = frozenset(bad)

    def __call__(self, index):
        if index in self.bad:
            raise OSError(f"torn\nat {index}")
        return Image.new("RGB", (2, 2), (index % 256, index // 256, 0))


def painted(count, bad=()):
    return ImageDataset("painted", tuple(f"image {index}" for index in range(count)), Painted(bad))


def taken(images, count, frame=whole, size=4, seed=5, **more):
    return list(itertools.islice(build_view_loader(images, frame, size, seed, **more), count))


def plain(batches):
    return [([view.tolist() for view in batch.views], batch.positions, batch.bad) for batch in batches]


def numbers(batch, view=0):
    """Which images of :func:`painted` are in it."""
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
def stream(crops):
    return plain(taken(crops, 30, crop, size=10))  # seven epochs and a half: 48 images, four batches an epoch


# ---- a function of seed and position -------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "workers"), [(0, 0), (1, 0), (3, 0), (4, 0), (13, 0), (0, 2), (5, 1), (6, 2)])
def test_whoever_decodes_and_from_wherever_on_it_is_the_same_stream(first, workers, crops, stream):
    disturb()
    got = taken(crops, 30 - first, crop, size=10, first=first, workers=workers)
    assert plain(got) == stream[first:]


def test_kept_images_give_the_same_stream(crops, stream):
    assert plain(taken(CachedDataset(crops), 30, crop, size=10)) == stream


def test_another_seed_gives_another_stream():
    ours, other = taken(painted(40), 10), taken(painted(40), 10, seed=6)
    assert [numbers(batch) for batch in ours] != [numbers(batch) for batch in other]


def test_what_is_drawn_meanwhile_does_not_matter(crops, stream):
    batches = build_view_loader(crops, crop, 10, 5)
    got = []
    for _ in range(6):
        disturb()
        got.append(next(batches))
    assert plain(got) == stream[:6]


def test_a_far_batch_is_found_at_once():
    asked = []

    def read(index):
        asked.append(index)
        return Painted()(index)

    images = ImageDataset("painted", ("",) * 10, read)
    [batch] = taken(images, 1, first=10**12 + 1)
    assert batch.positions == tuple(range(4 * 10**12 + 4, 4 * 10**12 + 8))
    assert asked == numbers(batch)


@pytest.mark.parametrize("view", [0, 1, 2])
def test_every_choice_follows_from_seed_position_and_view(view):
    for batch in taken(painted(9), 5, drawing, views=3):
        assert len(batch.views) == 3
        for position, got in zip(batch.positions, batch.views[view], strict=True):
            image = Image.new("RGB", (1, 1), (int(got.flatten()[0]), 0, 0))
            with seeded_rng(5, position, view):
                assert torch.equal(got, drawing(image))


def test_the_order_is_a_permutation_by_seed_and_epoch():
    batches = taken(painted(11), 6)
    for epoch in range(3):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(derive_seed(5, "epoch", epoch))).tolist()
        assert numbers(batches[2 * epoch]) + numbers(batches[2 * epoch + 1]) == order[:8]


def test_views_differ(crops):
    for batch in taken(crops, 4, crop, size=10):
        first, second = batch.views
        assert first.dtype == second.dtype == torch.uint8
        assert first.shape == second.shape == (10, 3, 8, 8)
        assert all(not torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_an_image_has_new_views_each_time_it_comes():
    batches = taken(painted(1), 20, drawing, size=1)
    assert len({tuple(view.flatten().tolist()) for batch in batches for view in batch.views}) == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_left_as_they_are(workers):
    before = generators()
    batches = build_view_loader(painted(9), drawing, 4, 5, workers=workers)
    assert generators() == before
    for _ in range(5):
        next(batches)
    assert generators() == before


def interruptible(image):
    return torch.full((3, 1, 1), signal.getsignal(signal.SIGINT) is not signal.SIG_IGN, dtype=torch.uint8)


def test_an_interrupt_is_left_to_the_main_process():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it as well
    try:
        for workers in (0, 1):
            [batch] = taken(painted(4), 1, interruptible, workers=workers)
            assert batch.views[0].any() == (workers == 0)
    finally:
        signal.signal(signal.SIGINT, before)


# ---- epochs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(8, 4), (11, 4), (7, 7), (5, 1), (300, 128)])
def test_an_image_comes_at_most_once_an_epoch_and_each_epoch_has_its_order(count, size):
    steps, epochs = steps_per_epoch(count, size), 4
    assert steps == count // size
    batches = taken(painted(count), steps * epochs, size=size)
    assert [position for batch in batches for position in batch.positions] == list(range(steps * epochs * size))
    orders = []
    for epoch in range(epochs):
        order = list(itertools.chain(*map(numbers, batches[epoch * steps : (epoch + 1) * steps])))
        assert len(set(order)) == len(order) == steps * size
        assert set(order) <= set(range(count))
        orders.append(tuple(order))
    assert len(set(orders)) == epochs


def test_what_an_epoch_leaves_out_is_not_always_the_same():
    batches = taken(painted(11), 40)
    assert {number for batch in batches for number in numbers(batch)} == set(range(11))


# ---- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("first", [0, 3])
def test_ranks_share_each_batch_in_their_order(world, first):
    together = taken(painted(19), 6, drawing, size=8, first=first)
    parts = [taken(painted(19), 6, drawing, size=8, first=first, rank=rank, world=world) for rank in range(world)]
    for batch, shares in zip(together, zip(*parts, strict=True), strict=True):
        assert [len(share.positions) for share in shares] == [8 // world] * world
        assert sum((share.positions for share in shares), ()) == batch.positions
        for view in range(2):
            assert torch.equal(torch.cat([share.views[view] for share in shares]), batch.views[view])


@pytest.mark.parametrize(
    ("size", "world", "message"),
    [
        (0, 1, "a batch of 0 cannot be shared by 1 process"),
        (-4, 2, "a batch of -4 cannot"),
        (6, 4, "a batch of 6 cannot be shared by 4 processes; make it a multiple"),
        (12, 1, "painted has 11 images, too few for a batch of 12; make"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_before_any_image_is_asked_for(size, world, message):
    with pytest.raises(UserError, match=message):
        build_view_loader(painted(11), whole, size, 0, world=world)


# ---- bad images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_good_image_stands_in_for_a_bad_one(workers):
    good, torn = taken(painted(8), 4), taken(painted(8, {2, 3, 7}), 4, workers=workers)
    stand_in = {2: 4, 3: 4, 7: 0}
    for batch, other in zip(good, torn, strict=True):
        asked = numbers(batch)
        assert numbers(other) == [stand_in.get(number, number) for number in asked]
        assert other.positions == batch.positions
        bad = {2: [2, 3], 3: [3], 7: [7]}
        named = dict.fromkeys(f"image {each}" for number in asked for each in bad.get(number, ()))
        assert other.bad == tuple(named)  # once each, in the order in which they were met


def test_a_stand_in_is_drawn_as_for_its_place():
    [batch] = taken(painted(4, {0, 1, 3}), 1, drawing)
    for view in range(2):
        for position, got in zip(batch.positions, batch.views[view], strict=True):
            with seeded_rng(5, position, view):
                assert torch.equal(got, drawing(Image.new("RGB", (1, 1), (2, 0, 0))))


def test_real_files_that_are_torn_or_gone(tmp_path):
    for index in range(6):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    images = open_images(str(tmp_path))
    (tmp_path / "4.png").unlink()
    [batch] = taken(images, 1, size=6)
    assert sorted(numbers(batch)) == [0, 2, 2, 3, 5, 5]
    assert set(batch.bad) == {str(tmp_path / "1.png"), str(tmp_path / "4.png")}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("count", "named"), [(3, 3), (100, 100), (400, 100)])
def test_where_no_image_can_be_read_it_ends_in_one_sentence(workers, count, named):
    with pytest.raises(UserError) as stop:
        taken(painted(count, range(count)), 1, size=2, workers=workers)
    first = str(stop.value).split("from ")[1].split(" on")[0]
    number = first.removeprefix("image ")
    assert str(stop.value) == (
        f"{named} images in a row cannot be read, from {first} on (OSError: torn at {number}); mend them or name others"
    )


def test_a_hundred_bad_images_in_a_row_are_too_many_and_ninety_nine_are_not():
    taken(painted(200, range(99)), 50)
    with pytest.raises(UserError, match="100 images in a row cannot be read, from image 0 on"):
        taken(painted(200, range(100)), 50)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_view_that_fails_is_not_the_fault_of_the_file(workers):
    with pytest.raises(UserError, match=r"no view can be made of image \d: TypeError: 'int' object is not callable"):
        taken(painted(9), 1, frame=3, workers=workers)


def batch_of(*bad):
    return Batch((), (), bad)


def test_each_bad_image_is_named_once_and_counted(caplog):
    tolerance = BadImageCounter(2)
    with caplog.at_level(logging.WARNING, "ssql_det"):
        for bad in ((), ("a.jpg",), ("a.jpg", "b\n.jpg"), ("b\n.jpg", "a.jpg")):
            tolerance.take(batch_of(*bad))
    assert [record.getMessage() for record in caplog.records] == [
        "a.jpg cannot be read; the next image stands in (1 so far)",
        "b\\n.jpg cannot be read; the next image stands in (2 so far)",
    ]
    assert tolerance.files == {"a.jpg", "b\n.jpg"}


@pytest.mark.parametrize("most", [0, 1, 3])
def test_more_bad_images_than_the_limit_end_the_run(most, caplog):
    tolerance = BadImageCounter(most)
    tolerance.take(batch_of(*(f"{index}.jpg" for index in range(most))))
    with pytest.raises(UserError) as stop:
        tolerance.take(batch_of("last.jpg", "later.jpg"))
    said = str(stop.value)
    assert said.startswith(f"last.jpg cannot be read ({most + 1} so far) and DATA.MOST_BAD_IMAGES allows {most}; ")
    assert "later" not in said
    assert len(caplog.records) == most + 1
