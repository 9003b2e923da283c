"""Image data sets for pretraining and probes: folders, class folders, text files with paths, and CIFAR."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from ssql_det.core.errors import UserError
from ssql_det.images.reading import SUFFIXES, read_image
from ssql_det.ssl.augmentations import Augmentation

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "test")}  # the first of them that exists is used
_CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}


class NoLabelledSplitError(UserError):
    """A data set lacks the requested split, or labels. Pretraining then goes on without kNN
    evaluation, if MONITOR.DATA does not ask for it."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of any size in a fixed order. ``labels`` are indices into ``classes``, or None for images without labels.

    >>> from PIL import Image
    >>> gray = ImageDataset("gray", ("0.png", "1.png"), lambda index: Image.new("RGB", (8, 8), (255 * index,) * 3))
    >>> len(gray), gray[1].getpixel((0, 0)), gray.file(1)
    (2, (255, 255, 255), '1.png')
    """

    name: str  # of the data set, as stored in rows of results
    files: tuple[str, ...] = field(repr=False)  # for messages: paths, or "train image 7" in a folder of CIFAR
    read: Callable[[int], Image.Image] = field(repr=False)
    labels: tuple[int, ...] | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        """The image in RGB. For an unreadable file the decoder's exception propagates."""
        return self.read(index)

    def file(self, index: int) -> str:
        """The path of an image, or a description, for messages."""
        return self.files[index]


class CachedDataset(ImageDataset):
    """A data set whose decoded images are kept in memory, up to ``max_bytes`` in each worker process."""

    def __init__(self, images: ImageDataset, max_bytes: int = 256 * 2**20) -> None:
        super().__init__(
            images.name, images.files, _CachedReader(images.read, max_bytes), images.labels, images.classes
        )


@dataclass(frozen=True)
class DataConfig:
    """The config node ``DATA``: images to train on, and the augmentation of their views."""

    train: str  # as for open_images
    augmentation: Augmentation
    workers: int  # processes that load views
    max_bad_images: int  # unreadable files to tolerate, in each training process
    cache_mb: int  # memory for decoded images, in each worker

    def open(self) -> ImageDataset:
        return CachedDataset(open_images(self.train), self.cache_mb << 20)


class _CachedReader:
    def __init__(self, read: Callable[[int], Image.Image], max_bytes: int) -> None:
        self._read, self._free_bytes = read, max_bytes
        self._pixels: dict[int, NDArray[np.uint8]] = {}

    def __call__(self, index: int) -> Image.Image:
        if index in self._pixels:
            return Image.fromarray(self._pixels[index])
        image = self._read(index)
        pixels = np.asarray(image)
        if pixels.nbytes <= self._free_bytes:
            self._free_bytes -= pixels.nbytes
            self._pixels[index] = pixels
        return image


def open_images(path: str, split: str = "train") -> ImageDataset:
    """The images of one split. The files are only listed, not read. ``path`` is one of

    - ``cifar10:ROOT`` or ``cifar100:ROOT``, in torchvision's layout
    - a folder of splits: the folders ``train`` and ``val`` (or ``test``), or one of them if it has subfolders;
      the class folders of ``train`` define the classes of both
    - a folder, or a split, of at least two class folders, with every image directly in a class folder: labelled
    - a folder, or a split, of other images, at any depth: not labelled
    - a text file with a path per line, relative to the text file, and optionally a label after each path

    Images of folders are sorted by path; images of a text file keep the order of the file. A folder without splits and
    a text file have only the ``train`` split. Hidden files are ignored.
    """
    if split not in SPLIT_FOLDERS:
        raise UserError(f"the split must be {' or '.join(SPLIT_FOLDERS)}, got {split!r}")
    name, _, root = path.partition(":")
    if name in _CIFAR:
        return _open_cifar(name, Path(os.path.expanduser(root)), split)
    file_or_folder = Path(os.path.expanduser(path))
    try:
        if not path or not file_or_folder.exists():
            raise UserError(f"{path!r} does not exist; name a folder of images, a text file of paths, or cifar10:ROOT")
        splits = _find_splits(file_or_folder)
        if split not in (splits or ["train"]):
            folders = " or ".join(SPLIT_FOLDERS[split])
            raise NoLabelledSplitError(
                f"{path} has no {split!r} split (no folder {folders}); add it, or use other data"
            )
        if file_or_folder.is_dir():
            return _open_folder(splits.get(split, file_or_folder), file_or_folder.resolve().name, splits.get("train"))
        return _open_list(file_or_folder)
    except OSError as error:
        message = f"{error.filename or path} cannot be read: {error.strerror or error}"
        raise UserError(f"{message}; check the path and its permissions") from error


def hash_file_names(images: ImageDataset) -> str:
    """A hash of all file names, each with the name of its folder; it stays the same if the data set is moved."""
    content = hashlib.sha256()
    for file in images.files:
        content.update(repr(Path(file).parts[-2:]).encode())
    return content.hexdigest()


def _open_cifar(name: str, root: Path, split: str) -> ImageDataset:
    dataset_class = _CIFAR[name]
    folder = root / dataset_class.base_folder
    try:
        # torchvision unpickles only files with the published MD5, so unpickling is safe.
        dataset = dataset_class(root, train=split == "train")
    except (OSError, RuntimeError) as error:
        problem = "is incomplete or damaged" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {problem}; unpack {dataset_class.filename} in {root}") from error
    files = tuple(os.path.join(folder, f"{split} image {index}") for index in range(len(dataset.data)))
    pixels = np.ascontiguousarray(dataset.data)  # torchvision's array is a transposed view
    return ImageDataset(name, files, partial(_get_pixels, pixels), tuple(dataset.targets), tuple(dataset.classes))


def _find_splits(folder: Path) -> dict[str, Path]:
    """The folder of each split; empty if there are no splits. A single folder ``train``, ``val`` or ``test`` without
    subfolders is a class, as CIFAR-100 has a class ``train``."""
    if (folder / "crops" / "train").is_dir():  # the root of the toy data: VOC2007, coco and crops
        raise UserError(f"{folder} holds several data sets; name one of them, such as {folder / 'crops'}")
    splits = {
        split: folder / name
        for split, names in SPLIT_FOLDERS.items()
        for name in names[::-1]  # the first name overwrites the others
        if (folder / name).is_dir()
    }
    return splits if len(splits) == len(SPLIT_FOLDERS) or any(map(_list_subfolders, splits.values())) else {}


def _open_folder(folder: Path, name: str, train_folder: Path | None) -> ImageDataset:
    """``train_folder``: of the train split, if there are splits; its class folders define the classes."""
    paths = sorted(_find_images(folder))
    if not paths:
        raise UserError(f"{folder} has no images (*{', *'.join(SUFFIXES)}); name a folder that has images")
    files = tuple(os.path.join(folder, path) for path in paths)
    images, subfolders = ImageDataset(name, files, partial(_read_file, files)), _list_subfolders(folder)
    if len(subfolders) < 2 or any(path.count(os.sep) != 1 for path in paths):
        return images
    classes = (train_folder and _list_subfolders(train_folder)) or subfolders
    class_of_image = [path.split(os.sep)[0] for path in paths]
    unknown = sorted({*class_of_image} - {*classes})
    if unknown:
        raise UserError(
            f"{folder} has the class {unknown[0]}, which {train_folder} does not have; use the same class folders in "
            "both"
        )
    label_of_class = {name: label for label, name in enumerate(classes)}
    return replace(images, labels=tuple(label_of_class[name] for name in class_of_image), classes=tuple(classes))


def _open_list(file: Path) -> ImageDataset:
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file; name a folder of images, or a text file of paths") from error
    entries = [(line_number, *_parse_line(line.strip())) for line_number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise UserError(f"{file} lists no images; write one path per line")
    for line_number, path, label in entries:
        if not (file.parent / path).is_file():
            raise UserError(f"{file}, line {line_number}: there is no file {path}; paths are relative to {file.parent}")
        if (label is None) != (entries[0][2] is None):
            raise UserError(f"{file}, line {line_number}: only some images have labels; label all of them, or none")
    files = tuple(os.path.join(file.parent, path) for _, path, _ in entries)
    labels = tuple(label for _, _, label in entries if label is not None)
    classes = tuple(map(str, range(max(labels, default=-1) + 1)))
    return ImageDataset(file.stem, files, partial(_read_file, files), labels or None, classes)


def _parse_line(line: str) -> tuple[str, int | None]:
    """The path and the label in a line, or None for no label."""
    path, *label = line.rsplit(None, 1)
    # At most 6 digits: the number of classes is the largest label + 1, and all class names are held in memory.
    is_labelled = label and label[0].isdecimal() and len(label[0]) < 7
    return (path, int(label[0])) if is_labelled else (line, None)


def _find_images(folder: Path, subfolder: str = "", parents: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of images, relative to ``folder``. Symbolic links to a parent folder are skipped, to avoid endless
    loops."""
    real_path = os.path.realpath(folder / subfolder)
    for entry in os.scandir(real_path) if real_path not in parents else ():
        path = os.path.join(subfolder, entry.name)
        if entry.is_dir() and entry.name[0] != ".":
            yield from _find_images(folder, path, (*parents, real_path))
        elif path.lower().endswith(SUFFIXES) and entry.name[0] != ".":
            yield path


def _list_subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _read_file(files: tuple[str, ...], index: int) -> Image.Image:
    return read_image(files[index])


def _get_pixels(pixels: NDArray[np.uint8], index: int) -> Image.Image:
    return Image.fromarray(pixels[index])
