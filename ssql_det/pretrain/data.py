"""Images to pretrain on and to probe with, wherever they are: folders, class folders, lists and CIFAR."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from ssql_det.core.errors import UserError
from ssql_det.ssl.augmentations import Augmentation

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLITS = {"train": ("train",), "val": ("val", "test")}  # and their folders; of two, the first that is there
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # whatever the suffix; one of Pillow's others starts a program
_CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of any sizes in a fixed order. ``labels`` are indices into ``classes``; None where nothing tells them.

    >>> images = open_images("toy/crops", "val")
    >>> images[0].mode, images.file(0), images.classes[images.labels[0]]
    ('RGB', 'toy/crops/test/eight/000003.png', 'eight')
    """

    name: str  # for rows
    files: tuple[str, ...] = field(repr=False)
    read: Callable[[int], Image.Image] = field(repr=False)
    labels: tuple[int, ...] | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        """In RGB. What cannot be read raises whatever its decoder raises."""
        return self.read(index)

    def file(self, index: int) -> str:
        """What is named when it cannot be read."""
        return self.files[index]


class CachedDataset(ImageDataset):
    """Images that stay decoded once they were read, while there is room; each worker process has room of its own.

    >>> images = CachedDataset(open_images("toy/crops"))
    """

    def __init__(self, images: ImageDataset, most_bytes: int = 256 * 2**20) -> None:
        super().__init__(images.name, images.files, _Kept(images.read, most_bytes), images.labels, images.classes)


@dataclass(frozen=True)
class DataConfig:
    """The keys of ``DATA``: images to train on, and how views of them are made."""

    train: str
    views: Augmentation
    workers: int
    most_bad_images: int
    cache_mb: int

    def open(self) -> ImageDataset:
        return CachedDataset(open_images(self.train), self.cache_mb << 20)


class _Kept:
    def __init__(self, read: Callable[[int], Image.Image], room: int) -> None:
        self._read, self._room = read, room
        self._pixels: dict[int, NDArray[np.uint8]] = {}

    def __call__(self, index: int) -> Image.Image:
        if index in self._pixels:
            return Image.fromarray(self._pixels[index])
        image = self._read(index)
        pixels = np.asarray(image)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._pixels[index] = pixels
        return image


def open_images(path: str, split: str = "train") -> ImageDataset:
    """The images of one split; files are found, not yet read. ``path`` is one of

    - ``cifar10:ROOT`` or ``cifar100:ROOT``, as torchvision lays them out in ROOT
    - a folder with ``train`` and ``val`` (or ``test``) in it, each one of the next two; ``train`` gives the classes
    - a folder of two or more class folders with every image right in one of them: labelled
    - a folder of other images, at any depth: not labelled
    - a text file with a path a line, from its own folder on, and behind it, in all lines or in none, a label

    Files are sorted by path, a list's stand as listed. What has no parts is ``train``; hidden files do not count.

    >>> open_images("cifar10:/data").classes[3], len(open_images("/data/imagenet", "val"))
    ('cat', 50000)
    """
    if split not in SPLITS:
        raise UserError(f"a split is {' or '.join(SPLITS)}, got {split!r}")
    kind, _, root = path.partition(":")
    if kind in _CIFAR:
        return _open_cifar(kind, Path(os.path.expanduser(root)), split)
    place = Path(os.path.expanduser(path))
    try:
        if not path or not place.exists():
            raise UserError(f"{path!r} is not there; name a folder of images, a list of their paths, or cifar10:ROOT")
        parts = _parts(place)
        if split not in (parts or ["train"]):
            raise UserError(f"{path} has no {split} part, no folder {' or '.join(SPLITS[split])}; name another source")
        if place.is_dir():
            return _open_folder(parts.get(split, place), place.resolve().name, parts.get("train"))
        return _open_list(place)
    except OSError as failure:
        what = f"{failure.filename or path} cannot be read"
        raise UserError(f"{what}: {failure.strerror or failure}; check the path and its rights") from failure


def hash_file_names(images: ImageDataset) -> str:
    """A hash of the files' names and the folders they lie in: the same wherever the data lie."""
    content = hashlib.sha256()
    for file in images.files:
        content.update(repr(Path(file).parts[-2:]).encode())
    return content.hexdigest()


def read_image(file: str) -> Image.Image:
    """A file in RGB, converted as torchvision's loader does it, but that 16-bit gray becomes its upper 8 bits."""
    if not os.path.isfile(file):  # a pipe would be waited for without end
        raise FileNotFoundError("there is no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on metadata, many in a large data set
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=_FORMATS) as image:
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers, and nothing says which of them is white")
            if image.mode.startswith("I"):  # Pillow would turn all above 255 white
                upper = np.asarray(image).clip(0, 0xFFFF) >> 8
                return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
            return image.convert("RGB")


def _open_cifar(kind: str, root: Path, split: str) -> ImageDataset:
    source = _CIFAR[kind]
    place = root / source.base_folder
    try:
        content = source(root, train=split == "train")  # unpickles nothing but files of the published MD5s
    except (OSError, RuntimeError) as failure:
        fault = "is not whole" if place.is_dir() else "is not there"
        raise UserError(f"{place} {fault}; unpack {source.filename} in {root}, for torchvision's layout") from failure
    files = tuple(os.path.join(place, f"{split} image {index}") for index in range(len(content.data)))
    pixels = np.ascontiguousarray(content.data)  # torchvision's is a view of planes
    return ImageDataset(kind, files, partial(_from_pixels, pixels), tuple(content.targets), tuple(content.classes))


def _parts(place: Path) -> dict[str, Path]:
    """The folder of each split; none where ``train`` is the name of a class, as it is in CIFAR-100."""
    if (place / "crops" / "train").is_dir():  # toy data: scenes, their masks and crops, those of the test among them
        raise UserError(f"{place} holds several data sets; name one of them, such as {place / 'crops'}")
    found = {split: place / name for split, names in SPLITS.items() for name in names[::-1] if (place / name).is_dir()}
    return found if len(found) == len(SPLITS) or any(map(_folders, found.values())) else {}


def _open_folder(folder: Path, name: str, train: Path | None) -> ImageDataset:
    inside = sorted(_files_under(folder))
    if not inside:
        raise UserError(f"{folder} has no images in it, no *{', *'.join(SUFFIXES)}; name a folder that has")
    files = tuple(os.path.join(folder, each) for each in inside)
    images, own = ImageDataset(name, files, partial(_from_file, files)), _folders(folder)
    if len(own) < 2 or any(each.count(os.sep) != 1 for each in inside):
        return images
    classes = (train and _folders(train)) or own
    owners = [each.split(os.sep)[0] for each in inside]
    unknown = sorted({*owners} - {*classes})
    if unknown:
        raise UserError(f"{folder} has the class {unknown[0]}, {train} has not; give both the same class folders")
    numbers = {each: number for number, each in enumerate(classes)}
    return replace(images, labels=tuple(numbers[each] for each in owners), classes=tuple(classes))


def _open_list(file: Path) -> ImageDataset:
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as failure:
        raise UserError(f"{file} is no text; name a folder of images, or a list with a path a line") from failure
    entries = [(number, *_entry(line.strip())) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise UserError(f"{file} lists no images; write a path a line")
    for number, path, label in entries:
        if not (file.parent / path).is_file():
            raise UserError(f"line {number} of {file} names {path}, which is no file; paths start at {file.parent}")
        if (label is None) != (entries[0][2] is None):
            raise UserError(f"line {number} of {file} and its first differ in having a label; give all one, or none")
    files = tuple(os.path.join(file.parent, path) for _, path, _ in entries)
    labels = tuple(label for _, _, label in entries if label is not None)
    classes = tuple(map(str, range(max(labels, default=-1) + 1)))
    return ImageDataset(file.stem, files, partial(_from_file, files), labels or None, classes)


def _entry(line: str) -> tuple[str, int | None]:
    path, *last = line.rsplit(None, 1)
    is_labelled = last and last[0].isdecimal() and len(last[0]) < 7  # each number up to the highest becomes a class
    return (path, int(last[0])) if is_labelled else (line, None)


def _files_under(folder: Path, within: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of images, from ``folder`` on. A link that leads back up is not followed: it would go round for ever."""
    place = os.path.realpath(folder / within)
    for entry in os.scandir(place) if place not in above else ():
        path = os.path.join(within, entry.name)
        if entry.is_dir() and entry.name[0] != ".":
            yield from _files_under(folder, path, (*above, place))
        elif path.lower().endswith(SUFFIXES) and entry.name[0] != ".":
            yield path


def _folders(place: Path) -> list[str]:
    return sorted(each.name for each in os.scandir(place) if each.is_dir() and each.name[0] != ".")


def _from_file(files: tuple[str, ...], index: int) -> Image.Image:
    return read_image(files[index])


def _from_pixels(pixels: NDArray[np.uint8], index: int) -> Image.Image:
    return Image.fromarray(pixels[index])
