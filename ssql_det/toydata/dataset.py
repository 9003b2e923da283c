"""Making the toy data folder. It is made in a temporary folder and renamed, so it is always complete.

::

    OUT/VOC2007    trainval, test     the scenes of coco/train2017 and coco/val2017
    OUT/VOC2012    trainval           more scenes with train digits
    OUT/coco       train2017, val2017
    OUT/crops      train/<class>/, test/<class>/: one digit each, PNG
    OUT/manifest.json                 the settings and the SHA-256 of every file

Detectron2 finds these data sets with ``DETECTRON2_DATASETS=OUT``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write, check_disk_space, read_text, sha256, temporary_folder, temporary_path
from ssql_det.core.json_files import parse_json
from ssql_det.toydata.digits import CLASSES, CROP_SIZES, load_digit_split, make_crop
from ssql_det.toydata.layouts import EncodedScene, encode_scene, write_coco, write_voc
from ssql_det.toydata.scenes import SIDES, make_scene

MANIFEST = "manifest.json"
FORMAT = "ssql_det toy data"
VERSION = 2  # increased when the same settings give other files

_CHUNK_SIZE = 25  # images per task of a worker thread; threads suffice, since OpenCV and NumPy release the GIL
T = TypeVar("T")


@dataclass(frozen=True)
class ToyDataSettings:
    """All that determines the files. Half of the scenes are train images of VOC2007 and COCO, a quarter are those of
    VOC2012, a quarter are test images; four fifths of the crops are train images."""

    scenes: int = 1000
    crops: int = 10000
    crop_size: int = 32
    least_side: int = SIDES[0]
    most_side: int = SIDES[1]
    difficulty: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("scenes", 4), ("crops", 5)):
            count = getattr(self, name)
            if count < least:
                raise UserError(f"--{name} must be at least {least}, so that no split is empty; got {count}")
        if self.crop_size not in CROP_SIZES:
            raise UserError(f"--crop-size must be one of {', '.join(map(str, CROP_SIZES))}; got {self.crop_size}")
        if not 96 <= self.least_side <= self.most_side <= 2048:
            sides = f"{self.least_side} {self.most_side}"
            raise UserError(f"--size must be two sizes from 96 to 2048 pixels, the smaller first; got {sides}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")
        if not 0 <= self.difficulty <= 1:
            raise UserError(f"difficulty must be from 0 to 1, got {self.difficulty}")

    @property
    def megabytes(self) -> float:
        """The approximate size on disk."""
        return 0.008 * self.scenes * (self.most_side / 128) ** 2 + 0.004 * self.crops

    @property
    def first_test_scene(self) -> int:
        """The number in the file name of VOC2007's first test image; those before it are for training."""
        return self.scenes - 2 * (self.scenes // 4) + 1


def make_toy_data(out: str | os.PathLike[str], settings: ToyDataSettings, workers: int | None = None) -> Path:
    """Make the toy data in the folder ``out``, unless it already holds them with the same settings.

    Toy data of other settings are replaced; a folder with other files is refused.

    >>> make_toy_data("toy", ToyDataSettings(scenes=4, crops=5)).name
    'toy'
    """
    folder = Path(out).resolve()
    if is_complete(folder, settings):
        return folder
    _check_replaceable(folder)
    check_disk_space(folder, settings.megabytes)
    try:
        with temporary_folder(folder) as temporary:
            with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
                _write_scenes(temporary, settings, pool)
                _write_crops(temporary, settings, pool)
            _write_manifest(temporary, settings)
            if not is_complete(folder, settings):  # else another process has made it meanwhile
                _replace_folder(folder, temporary)
    except OSError as failure:
        raise UserError(f"could not make toy data in {folder}: {failure.strerror or failure}") from failure
    return folder


def is_complete(folder: Path, settings: ToyDataSettings) -> bool:
    """Whether the folder holds toy data of these settings and no file is missing."""
    manifest = _read_manifest(folder)
    if manifest is None or manifest.get("settings") != asdict(settings) or manifest.get("version") != VERSION:
        return False
    return all((folder / name).is_file() for name in manifest["files"])


def _replace_folder(folder: Path, new: Path) -> None:
    """By renaming, so that the folder is complete at any moment."""
    old = temporary_path(folder, "old")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds anything but toy data."""
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise UserError(f"{folder} is the current folder or contains it; name a new folder for the toy data")
    if folder.is_file():
        raise UserError(f"{folder} is a file; name a folder for the toy data")
    if not folder.is_dir():
        return
    manifest = _read_manifest(folder) or {"files": {}}
    known = {MANIFEST, *manifest["files"]}
    files = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    other = next((path for path in files if path.relative_to(folder).as_posix() not in known), None)
    if other is not None:
        raise UserError(f"{folder} holds other files than toy data, such as {other.name}; name a new folder")
    if manifest.get("version", VERSION) > VERSION:
        raise UserError(f"{folder} holds toy data of a newer ssql_det; update ssql_det, or name a new folder")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = parse_json(read_text(folder / MANIFEST))
    except (UserError, ValueError):  # missing, no file, or damaged
        return None
    is_ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    is_whole = is_ours and isinstance(manifest.get("files"), dict) and isinstance(manifest.get("version", VERSION), int)
    return manifest if is_whole else None


def _write_scenes(root: Path, settings: ToyDataSettings, pool: ThreadPoolExecutor) -> None:
    test, extra = settings.scenes // 4, settings.scenes // 4
    train = settings.scenes - test - extra
    parts = {"train": ("train", train), "extra": ("train", extra), "test": ("test", test)}
    scenes = {
        part: list(_map_parallel(pool, partial(_make_scene, settings, number, split), count, f"{part} scenes"))
        for number, (part, (split, count)) in enumerate(parts.items())
    }
    names = [f"{number:06d}" for number in range(1, train + test + 1)]
    write_voc(root / "VOC2007", "trainval", names[:train], scenes["train"])
    write_voc(root / "VOC2007", "test", names[train:], scenes["test"])
    write_voc(root / "VOC2012", "trainval", [f"2012_{number:06d}" for number in range(1, extra + 1)], scenes["extra"])
    write_coco(root / "coco", "train2017", 1, scenes["train"])
    write_coco(root / "coco", "val2017", train + 1, scenes["test"])


def _write_crops(root: Path, settings: ToyDataSettings, pool: ThreadPoolExecutor) -> None:
    test = settings.crops // 5
    for number, (split, count) in enumerate({"train": settings.crops - test, "test": test}.items()):
        for category in CLASSES:
            (root / "crops" / split / category).mkdir(parents=True)
        crops = _map_parallel(pool, partial(_make_crop, settings, number, split), count, f"{split} crops")
        for index, (png, label) in enumerate(crops):
            (root / "crops" / split / CLASSES[label] / f"{index:06d}.png").write_bytes(png)


def _write_manifest(root: Path, settings: ToyDataSettings) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "settings": asdict(settings),
        "files": {path.relative_to(root).as_posix(): sha256(path) for path in files},
    }
    with atomic_write(root / MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)


def _map_parallel(pool: ThreadPoolExecutor, make: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """``make(0)``, ..., ``make(count - 1)``, in order, on any number of workers."""
    chunks = [range(start, min(start + _CHUNK_SIZE, count)) for start in range(0, count, _CHUNK_SIZE)]
    results = pool.map(lambda chunk: [make(index) for index in chunk], chunks)
    return chain.from_iterable(track(results, f"making {what}", len(chunks)))


def _make_scene(settings: ToyDataSettings, part: int, split: str, index: int) -> EncodedScene:
    rng = np.random.default_rng([settings.seed, 0, part, index])
    sides = (settings.least_side, settings.most_side)
    while True:
        scene = make_scene(rng, load_digit_split(split), sides, settings.difficulty)
        if (
            index or scene.objects
        ):  # the first scene of a split always has an object, so that even a tiny split can be trained on
            return encode_scene(scene)


def _make_crop(settings: ToyDataSettings, part: int, split: str, index: int) -> tuple[bytes, int]:
    rng = np.random.default_rng([settings.seed, 1, part, index])
    image, label = make_crop(rng, load_digit_split(split), settings.crop_size, settings.difficulty)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes(), label
