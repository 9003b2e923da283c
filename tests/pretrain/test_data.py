"""Image data sets: their files, order and labels; unreadable files; the cache."""

import hashlib
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from ssql_det.core.errors import UserError
from ssql_det.pretrain.data import CachedDataset, ImageDataset, hash_file_names, open_images
from ssql_det.toydata.digits import CLASSES

RED, GRAY = (200, 30, 40), (7, 7, 7)


def save_images(folder, *names, colour=RED):
    """A small image at each path; its red is the number of the path, so that it can be told apart."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, *colour[1:])).save(folder / name, "PNG")  # lossless, whatever the suffix
    return folder


def relative_paths(images, folder):
    return [os.path.relpath(file, folder) for file in images.files]


def read_reds(images):
    return [np.asarray(image)[0, 0, 0].item() for image in images]


def get_error(path, split="train"):
    with pytest.raises(UserError) as refused:
        open_images(str(path), split)
    message = str(refused.value)
    assert "; " in message  # what to do
    assert "\n" not in message
    return message


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "folder"), [("train", "train"), ("val", "test")])
def test_the_crops_of_toy_data(split, folder, toy):
    images = open_images(str(toy / "crops"), split)
    theirs = ImageFolder(toy / "crops" / folder, allow_empty=True)  # a small data set may lack a digit
    assert images.classes == tuple(theirs.classes) == tuple(sorted(CLASSES))
    assert [(file, label) for file, label in zip(images.files, images.labels, strict=True)] == theirs.samples
    assert images.name == "crops"
    assert len(images) == {"train": 48, "val": 12}[split]
    for ours, (other, _) in zip(images, theirs, strict=True):
        assert ours.mode == "RGB"
        assert np.array_equal(ours, other)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_of_several_toy_data_sets_is_refused(split, toy):
    assert f"such as {toy / 'crops'}" in get_error(toy, split)


def test_scenes_of_toy_data_are_images_without_labels(toy):
    images = open_images(str(toy / "coco" / "train2017"))
    assert len(images) == 30
    assert images.labels is None
    assert images.classes == ()


def test_files_are_sorted_by_path(tmp_path, monkeypatch):
    names = ["b.png", "a/z.png", "a/y/x.png", "B.JPG", "a-b/c.png", "10.png", "9.png"]
    save_images(tmp_path, *names)
    images = open_images(str(tmp_path))
    assert relative_paths(images, tmp_path) == sorted(names)
    assert read_reds(images) == [names.index(name) for name in sorted(names)]
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: sorted(scandir(place), key=lambda entry: entry.name, reverse=True))
    assert open_images(str(tmp_path)).files == images.files


def test_suffixes_are_case_insensitive(tmp_path):
    known = ["a.jpg", "b.JPEG", "c.Png", "d.bmp", "e.webp", "f.tif", "g.TIFF", "h.i.jpg"]
    save_images(tmp_path, *known, "notes.txt", "jpg", "k.jpg.part", "l.gif", ".hidden.jpg", "._a.jpg", ".git/m.jpg")
    images = open_images(str(tmp_path))
    assert relative_paths(images, tmp_path) == known
    assert images.labels is None
    assert (len(images), images.file(2), images.name) == (8, str(tmp_path / "c.Png"), tmp_path.name)


def test_class_folders(tmp_path):
    save_images(tmp_path, "dog/2.jpg", "cat/1.jpg", "dog/1.jpg", ".thumbs/1.jpg")
    (tmp_path / "ape").mkdir()
    (tmp_path / "README").touch()
    images = open_images(str(tmp_path))
    assert relative_paths(images, tmp_path) == ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"]
    assert images.classes == ("ape", "cat", "dog")
    assert images.labels == (1, 2, 2)


@pytest.mark.parametrize("more", [["top.jpg"], ["dog/deep/1.jpg"]])
def test_images_outside_class_folders_mean_no_labels(more, tmp_path):
    images = open_images(str(save_images(tmp_path, "cat/1.jpg", "dog/1.jpg", *more)))
    assert len(images) == 3
    assert (images.labels, images.classes) == (None, ())


def test_a_single_folder_is_not_a_class(tmp_path):
    assert open_images(str(save_images(tmp_path, "images/1.jpg", "images/2.jpg"))).labels is None


@pytest.mark.parametrize("second", ["val", "test"])
def test_both_splits_have_the_classes_of_train(second, tmp_path):
    save_images(
        tmp_path, "train/ape/1.jpg", "train/cat/1.jpg", "train/dog/1.jpg", f"{second}/cat/5.jpg", f"{second}/dog/5.jpg"
    )
    train, val = open_images(str(tmp_path)), open_images(str(tmp_path), "val")
    assert relative_paths(train, tmp_path) == ["train/ape/1.jpg", "train/cat/1.jpg", "train/dog/1.jpg"]
    assert relative_paths(val, tmp_path) == [f"{second}/cat/5.jpg", f"{second}/dog/5.jpg"]
    assert train.classes == val.classes == ("ape", "cat", "dog")
    assert (train.labels, val.labels) == ((0, 1, 2), (1, 2))
    assert train.name == val.name == tmp_path.name


def test_val_is_preferred_to_test(tmp_path):
    save_images(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val", "test") for name in "ab"))
    assert relative_paths(open_images(str(tmp_path), "val"), tmp_path) == ["val/a/1.jpg", "val/b/1.jpg"]


def test_a_class_that_train_lacks_is_refused(tmp_path):
    save_images(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/hen/1.jpg")
    assert "has the class hen" in get_error(tmp_path, "val")
    assert len(open_images(str(tmp_path))) == 2


def test_splits_without_classes(tmp_path):
    save_images(tmp_path, "train/1.jpg", "train/2.jpg", "val/1.jpg", "more/1.jpg")
    train, val = open_images(str(tmp_path)), open_images(str(tmp_path), "val")
    assert (relative_paths(train, tmp_path), train.labels) == (["train/1.jpg", "train/2.jpg"], None)
    assert (relative_paths(val, tmp_path), val.labels) == (["val/1.jpg"], None)


def test_class_folders_of_val_alone(tmp_path):
    save_images(tmp_path, "train/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg")
    assert open_images(str(tmp_path)).labels is None
    assert open_images(str(tmp_path), "val").classes == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path):
    images = open_images(str(save_images(tmp_path, "bus/1.jpg", "train/1.jpg", "train/2.jpg")))
    assert images.classes == ("bus", "train")
    assert images.labels == (0, 1, 1)


@pytest.mark.parametrize(("there", "split"), [("train", "val"), ("val", "train"), ("test", "train")])
def test_a_folder_with_one_split_lacks_the_other(there, split, tmp_path):
    save_images(tmp_path, f"{there}/cat/1.jpg", f"{there}/dog/1.jpg")
    assert f"has no {split!r} split" in get_error(tmp_path, split)
    assert open_images(str(tmp_path), "train" if split == "val" else "val").labels == (0, 1)


def test_data_without_splits_are_the_train_split(tmp_path):
    save_images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "list.txt").write_text("cat/1.jpg\n")
    assert "has no 'val' split (no folder val or test)" in get_error(tmp_path, "val")
    assert "has no 'val' split" in get_error(tmp_path / "list.txt", "val")
    with pytest.raises(UserError, match="the split must be train or val, got 'test'"):
        open_images(str(tmp_path), "test")


def test_links_are_followed_without_endless_loops(tmp_path):
    save_images(tmp_path, "real/a/1.jpg", "data/b/2.jpg")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "data" / "b" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "real" / "a" / "back").symlink_to(tmp_path / "data")
    assert relative_paths(open_images(str(tmp_path / "data")), tmp_path / "data") == ["b/2.jpg", "linked/1.jpg"]


def test_a_relative_path_and_the_home_folder(tmp_path, monkeypatch):
    save_images(tmp_path, "set/1.jpg")
    monkeypatch.chdir(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (".", "../set", "~/set"):
        images = open_images(path)
        assert images.name == "set"
        assert images[0].size == (6, 4)


def test_missing_images_are_refused(tmp_path):
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    assert "has no images (*.bmp, *.jpeg, *.jpg" in get_error(tmp_path / "empty")
    assert "does not exist" in get_error(tmp_path / "nowhere")
    assert "'' does not exist" in get_error("")
    save_images(tmp_path, "half/val/a/1.jpg", "half/val/b/1.jpg")
    (tmp_path / "half" / "train").mkdir()
    assert f"{tmp_path / 'half' / 'train'} has no images" in get_error(tmp_path / "half")


def test_a_folder_without_permission_is_an_error(tmp_path, monkeypatch):
    save_images(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = os.scandir

    def forbidding(place):
        if os.fspath(place).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", forbidding)
    assert f"{tmp_path / 'b'} cannot be read: Permission denied" in get_error(tmp_path)


# ---- lists ---------------------------------------------------------------------------------------------------------


def test_a_list_of_paths(tmp_path):
    save_images(tmp_path, "b.png", "a.png", "sub dir/c d.png")
    (tmp_path / "some.txt").write_text(f"\ufeffb.png\r\n\r\n  sub dir/c d.png \n{tmp_path / 'a.png'}\nb.png", "utf-8")
    images = open_images(str(tmp_path / "some.txt"))
    assert images.files == tuple(str(tmp_path / each) for each in ("b.png", "sub dir/c d.png", "a.png", "b.png"))
    assert read_reds(images) == [0, 2, 1, 0]
    assert (images.name, images.labels, images.classes) == ("some", None, ())


def test_a_list_with_labels(tmp_path):
    save_images(tmp_path, "b.png", "a.png", "sub dir/c d.png")
    (tmp_path / "some.txt").write_text("b.png 3\na.png\t0\nsub dir/c d.png \t 1\n")
    images = open_images(str(tmp_path / "some.txt"))
    assert read_reds(images) == [0, 1, 2]
    assert images.labels == (3, 0, 1)
    assert images.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no images"),
        (b" \n\n", "lists no images"),
        (b"a.png\nb.png\n", "list.txt, line 2: there is no file b.png"),
        (b"a.png 1\na.png\n", "list.txt, line 2: only some images have labels"),
        (b"a.png\n\na.png 0\n", "list.txt, line 3: only some images have labels"),
        (b"a.png 1\na.png -1\n", "there is no file a.png -1"),
        (b"a.png 1000000000000\n", "there is no file a.png 1000000000000"),
        (b"a.png 1.5\n", "there is no file"),
        (b"folder\n", "there is no file folder"),
        (b"a\0.png\n", "there is no file"),
        (b"\x89PNG\r\n\x1a\n", "is not a text file"),
    ],
)
def test_an_invalid_list_is_refused(content, message, tmp_path):
    save_images(tmp_path, "a.png", "folder/x.png")
    (tmp_path / "list.txt").write_bytes(content)
    refused = get_error(tmp_path / "list.txt")
    assert str(tmp_path / "list.txt") in refused
    assert re.search(message, refused)


# ---- CIFAR ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Ten training and two test images in torchvision's layouts, with checksums to match: the root, and the pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    rows = pixels.transpose(0, 3, 1, 2).reshape(12, -1)
    places = {name: slice(2 * number, 2 * number + 2) for number, (name, _) in enumerate(CIFAR10.train_list)}
    places["test_batch"] = slice(10, 12)
    ten = {name: {"data": rows[place], "labels": list(range(12))[place]} for name, place in places.items()}
    hundred = {
        "train": {"data": rows[:10], "fine_labels": list(range(90, 100)), "coarse_labels": [0] * 10},
        "test": {"data": rows[10:], "fine_labels": [3, 4], "coarse_labels": [0] * 2},
    }
    names = [f"class {number}" for number in range(100)]
    for source, batches, meta in (
        (CIFAR10, ten, {"label_names": names[:12]}),
        (CIFAR100, hundred, {"fine_label_names": names}),
    ):
        sums = {}
        for name, content in {**batches, source.meta["filename"]: meta}.items():
            file = tmp_path / source.base_folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(pickle.dumps(content))
            sums[name] = hashlib.md5(file.read_bytes()).hexdigest()
        for each in ("train_list", "test_list"):
            monkeypatch.setattr(source, each, [[name, sums[name]] for name, _ in getattr(source, each)])
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums[source.meta["filename"]]})
    return tmp_path, pixels


@pytest.mark.parametrize(
    ("kind", "split", "labels", "part"),
    [
        ("cifar10", "train", range(10), slice(10)),
        ("cifar10", "val", (10, 11), slice(10, 12)),
        ("cifar100", "train", range(90, 100), slice(10)),
        ("cifar100", "val", (3, 4), slice(10, 12)),
    ],
)
def test_cifar(kind, split, labels, part, cifar):
    root, pixels = cifar
    images = open_images(f"{kind}:{root}", split)
    assert np.array_equal([np.asarray(image) for image in images], pixels[part])
    assert images[0].mode == "RGB"
    assert images.labels == tuple(labels)
    assert len(images.classes) == {"cifar10": 12, "cifar100": 100}[kind]
    assert images.classes[3] == "class 3"
    assert images.name == kind
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[kind]
    assert images.file(1) == str(root / folder / f"{split} image 1")


def test_the_hash_depends_on_names_and_not_on_the_location(cifar, tmp_path):
    root, _ = cifar
    shutil.copytree(root, tmp_path / "elsewhere")
    here, there = (hash_file_names(open_images(f"cifar10:{place}")) for place in (root, tmp_path / "elsewhere"))
    assert here == there != hash_file_names(open_images(f"cifar10:{root}", "val"))


def test_missing_or_damaged_cifar_is_refused(cifar, monkeypatch):
    root, _ = cifar
    assert f"{root / 'no' / 'cifar-10-batches-py'} does not exist; unpack cifar-10-python.tar.gz" in get_error(
        f"cifar10:{root}/no"
    )
    batch = root / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1] + b"!")
    assert "cifar-10-batches-py is incomplete or damaged; unpack" in get_error(f"cifar10:{root}")
    (root / "cifar-100-python" / "meta").unlink()
    assert "cifar-100-python is incomplete or damaged; unpack cifar-100-python.tar.gz" in get_error(f"cifar100:{root}")
    monkeypatch.setenv("HOME", str(root))
    assert f"{root / 'x' / 'cifar-10-batches-py'} does not exist" in get_error("cifar10:~/x")


# ---- files ---------------------------------------------------------------------------------------------------------


def make_bad_files(folder):
    """Files that no decoder can or should read, and one good file."""
    save_images(folder, "good.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:1500])
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-4000])
    (folder / "text.jpg").write_text("not an image")
    (folder / "zero.jpg").touch()
    (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
    (folder / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n")
    os.mkfifo(folder / "pipe.jpg")
    Image.new("F", (4, 4)).save(folder / "float.tif")
    return ["broken.jpg", "cut.jpg", "cut.png", "float.tif", "pipe.jpg", "script.jpg", "text.jpg", "zero.jpg"]


def test_unreadable_files_are_listed_and_raise_when_read(tmp_path):
    bad = make_bad_files(tmp_path)
    save_images(tmp_path, "folder.jpg/in.jpg")  # a folder, whatever its name
    images = open_images(str(tmp_path))
    assert relative_paths(images, tmp_path) == sorted([*bad, "good.jpg", "folder.jpg/in.jpg"])
    failed = []
    for index, file in enumerate(images.files):
        try:
            images[index]
        except Exception:
            failed.append(os.path.relpath(file, tmp_path))
    assert failed == bad
    with pytest.raises(IndexError):
        images[len(images)]


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="cannot count open files")
def test_reading_leaves_no_file_open(tmp_path):
    make_bad_files(tmp_path)
    images = open_images(str(tmp_path))
    kept, before = [], len(os.listdir("/dev/fd"))
    for index in range(len(images)):
        try:
            kept.append(images[index])
        except Exception as failure:
            kept.append(failure)
    assert len(os.listdir("/dev/fd")) == before


# ---- cache ------------------------------------------------------------------------------------------------


def count_reads(images):
    """The images, and a list of the indices that were read."""
    indices = []

    def read(index):
        indices.append(index)
        return images[index]

    return ImageDataset(images.name, images.files, read, images.labels, images.classes), indices


def test_cached_images_are_read_once(toy):
    plain = open_images(str(toy / "crops"))
    counted, indices = count_reads(plain)
    cached = CachedDataset(counted)
    assert isinstance(cached, ImageDataset)
    for field in ("name", "files", "labels", "classes"):
        assert getattr(cached, field) == getattr(plain, field)
    for _ in range(3):
        for index, theirs in enumerate(plain):
            ours = cached[index]
            assert np.array_equal(ours, theirs)
            ours.paste(GRAY, (0, 0, 32, 32))  # changing an image does not change the cached one
    assert indices == list(range(48))


def test_the_cache_has_a_size_limit(tmp_path):
    save_images(tmp_path, "1.png", "2.png", "3.png", "4.png")
    Image.new("RGB", (99, 99)).save(tmp_path / "0.png")
    counted, indices = count_reads(open_images(str(tmp_path)))
    cached = CachedDataset(counted, max_bytes=2 * 6 * 4 * 3 + 1)
    first, second = (read_reds(cached[index] for index in range(5)) for _ in range(2))
    assert first == second == [0, 0, 1, 2, 3]
    assert indices == [0, 1, 2, 3, 4, 0, 3, 4]


def test_failures_are_not_cached(tmp_path):
    (tmp_path / "a.jpg").touch()
    cached = CachedDataset(open_images(str(tmp_path)))
    with pytest.raises(Image.UnidentifiedImageError):
        cached[0]
    save_images(tmp_path, "a.jpg")
    assert cached[0].size == (6, 4)


def test_data_sets_can_be_pickled(toy):
    for images in (open_images(str(toy / "crops")), CachedDataset(open_images(str(toy / "crops")))):
        assert np.array_equal(pickle.loads(pickle.dumps(images))[3], images[3])
