"""The whole folder of toy data: made beside its place, checked into it by one rename, described by a manifest.

::

    OUT/VOC2007    trainval, test     the scenes of coco/train2017 and coco/val2017
    OUT/VOC2012    trainval           further scenes of training digits
    OUT/coco       train2017, val2017
    OUT/crops      train/<class>/, test/<class>/: one digit each, PNG
    OUT/manifest.json                 settings, and the SHA-256 of every file

``DETECTRON2_DATASETS=OUT`` is all that a reader of VOC or COCO needs to be told.
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
from ssql_det.core.files import atomic_write, check_disk_space, sha256, temporary_folder, temporary_path
from ssql_det.toydata.digits import CLASSES, CROP_SIZES, load_digit_split, make_crop
from ssql_det.toydata.layouts import EncodedScene, encode_scene, write_coco, write_voc
from ssql_det.toydata.scenes import SIDES, make_scene

MANIFEST = "manifest.json"
FORMAT = "ssql_det toy data"
VERSION = 2  # of the bytes that equal settings give

_CHUNK = 25  # items a worker makes at a time; threads serve, for OpenCV and NumPy work without the interpreter's lock
T = TypeVar("T")


@dataclass(frozen=True)
class ToyDataSettings:
    """Everything that decides the bytes. Half of the scenes train (VOC2007 and COCO), a quarter more train
    (VOC2012), a quarter test; four fifths of the crops train."""

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
                raise UserError(f"--{name} must be at least {least}, so that every split has one; got {count}")
        if self.crop_size not in CROP_SIZES:
            raise UserError(f"--crop-size must be one of {', '.join(map(str, CROP_SIZES))}; got {self.crop_size}")
        if not 96 <= self.least_side <= self.most_side <= 2048:
            sides = f"{self.least_side} {self.most_side}"
            raise UserError(f"--size goes from 96 to 2048 pixels, the lesser first; got {sides}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")
        if not 0 <= self.difficulty <= 1:
            raise UserError(f"difficulty goes from 0 to 1, got {self.difficulty}")

    @property
    def megabytes(self) -> float:
        """About so much of the disk."""
        return 0.008 * self.scenes * (self.most_side / 128) ** 2 + 0.004 * self.crops

    @property
    def first_test_scene(self) -> int:
        """Its number in the names of files; those before it train."""
        return self.scenes - 2 * (self.scenes // 4) + 1


def make_toy_data(out: str | os.PathLike[str], settings: ToyDataSettings, workers: int | None = None) -> Path:
    """Make the folder, or find it made: with equal settings nothing is done again.

    Older toy data are replaced; a folder with anything else in it is refused.

    >>> make_toy_data("toy", ToyDataSettings(scenes=40, crops=200))
    """
    place = Path(out).resolve()
    if is_made(place, settings):
        return place
    _refuse_foreign(place)
    check_disk_space(place, settings.megabytes)
    try:
        with temporary_folder(place) as making:
            with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
                _write_scenes(making, settings, pool)
                _write_crops(making, settings, pool)
            _write_manifest(making, settings)
            if not is_made(place, settings):  # nobody else has made it meanwhile
                _put_in_place(making, place)
    except OSError as failure:
        raise UserError(f"could not make toy data in {place}: {failure.strerror or failure}") from failure
    return place


def is_made(place: Path, settings: ToyDataSettings) -> bool:
    """Whether the folder is there with these settings, and no file of it is missing."""
    manifest = _read_manifest(place)
    if manifest is None or manifest.get("settings") != asdict(settings) or manifest.get("version") != VERSION:
        return False
    return all((place / name).is_file() for name in manifest["files"])


def _put_in_place(making: Path, place: Path) -> None:
    """By renaming, so that at each moment what is there is whole."""
    old = temporary_path(place, "old")
    if place.exists():
        place.rename(old)
    making.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(place: Path) -> None:
    if place == Path.cwd() or place in Path.cwd().parents:
        raise UserError(f"{place} is the folder you are in; name a new one for the toy data")
    if place.is_file():
        raise UserError(f"{place} is a file; name a folder for the toy data")
    if not place.is_dir():
        return
    manifest = _read_manifest(place) or {"files": {}}
    known = {MANIFEST, *manifest["files"]}
    files = (path for path in place.rglob("*") if path.is_file() or path.is_symlink())
    foreign = next((path for path in files if path.relative_to(place).as_posix() not in known), None)
    if foreign is not None:
        raise UserError(f"{place} holds something else than toy data, such as {foreign.name}; name a new folder")
    if manifest.get("version", VERSION) > VERSION:
        raise UserError(f"{place} holds toy data of a newer ssql_det; update it, or name a new folder")


def _read_manifest(place: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((place / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return manifest if is_ours and isinstance(manifest.get("files"), dict) else None


def _write_scenes(root: Path, settings: ToyDataSettings, pool: ThreadPoolExecutor) -> None:
    test, more = settings.scenes // 4, settings.scenes // 4
    train = settings.scenes - test - more
    parts = {"train": ("train", train), "more": ("train", more), "test": ("test", test)}
    made = {
        part: list(_in_parallel(pool, partial(_scene, settings, number, split), count, f"{part} scenes"))
        for number, (part, (split, count)) in enumerate(parts.items())
    }
    names = [f"{number:06d}" for number in range(1, train + test + 1)]
    write_voc(root / "VOC2007", "trainval", names[:train], made["train"])
    write_voc(root / "VOC2007", "test", names[train:], made["test"])
    write_voc(root / "VOC2012", "trainval", [f"2012_{number:06d}" for number in range(1, more + 1)], made["more"])
    write_coco(root / "coco", "train2017", 1, made["train"])
    write_coco(root / "coco", "val2017", train + 1, made["test"])


def _write_crops(root: Path, settings: ToyDataSettings, pool: ThreadPoolExecutor) -> None:
    test = settings.crops // 5
    for number, (split, count) in enumerate({"train": settings.crops - test, "test": test}.items()):
        for category in CLASSES:
            (root / "crops" / split / category).mkdir(parents=True)
        crops = _in_parallel(pool, partial(_crop, settings, number, split), count, f"{split} crops")
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


def _in_parallel(pool: ThreadPoolExecutor, make: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """``make(0)``, ..., ``make(count - 1)`` in order. Each item has its own generator, so workers do not matter."""
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    made = pool.map(lambda chunk: [make(index) for index in chunk], chunks)
    return chain.from_iterable(track(made, f"making {what}", len(chunks)))


def _scene(settings: ToyDataSettings, part: int, split: str, index: int) -> EncodedScene:
    rng = np.random.default_rng([settings.seed, 0, part, index])
    sides = (settings.least_side, settings.most_side)
    while True:
        scene = make_scene(rng, load_digit_split(split), sides, settings.difficulty)
        if index or scene.objects:  # the first of a split has objects: however few scenes, one can be trained on
            return encode_scene(scene)


def _crop(settings: ToyDataSettings, part: int, split: str, index: int) -> tuple[bytes, int]:
    rng = np.random.default_rng([settings.seed, 1, part, index])
    image, label = make_crop(rng, load_digit_split(split), settings.crop_size, settings.difficulty)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes(), label
