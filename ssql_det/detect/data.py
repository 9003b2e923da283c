"""Data sets and their images to calibrate with and to evaluate on; decoded once where memory allows.

A user's own data in COCO's format have a name that says where they lie, ``coco:IMAGES:FILE.json``, which may stand
wherever a config names a data set. So the config that a run saves finds its data again, in every command and process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ssql_det.checkdata.coco import check_coco_file
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.ranks import rank, world_size
from ssql_det.core.rows import Calibration
from ssql_det.d2 import (
    CfgNode,
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
    register_coco_instances,
)
from ssql_det.detect.answers import answered

Batch = list[dict[str, Any]]

_logger = logging.getLogger(__name__)

_PREFIX = "coco:"  # of the name of own data
_SHARE_OF_MEMORY = 0.25  # that decoded images may take of what is free, all processes together


class Decoded(Sequence[Batch]):
    """The batches of a loader, kept as long as they fit: later passes decode nothing that is kept.

    >>> images = Decoded(build_detection_test_loader(cfg, "toy_voc_2007_test"))
    >>> for batch in images: ...  # decoded
    >>> for batch in images: ...  # from memory
    """

    def __init__(self, loader: Any, most_bytes: int | None = None) -> None:
        self._loader = loader
        self._most_bytes = _free_memory() * _SHARE_OF_MEMORY / world_size() if most_bytes is None else most_bytes
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("batches come in their order; iterate")

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        decoded: list[Batch] = []
        left = self._most_bytes
        for batch in self._loader:
            left -= sum(each["image"].nbytes for each in batch)
            if left >= 0:
                decoded.append(batch)
            else:
                decoded.clear()
            yield batch
        if left >= 0:
            self._kept = decoded


def evaluation_images(cfg: CfgNode, name: str) -> Decoded:
    """The images of a data set in the config's test form."""
    check_dataset(name)
    with answered(f"the data set {name} cannot be read"):
        return Decoded(build_detection_test_loader(cfg, name))


def objects_hash(name: str) -> str:
    """What a data set asks for: its images' names and sizes, and the boxes in them. Where they lie does not matter."""
    check_dataset(name)
    content = hashlib.sha256()
    with answered(f"the data set {name} cannot be read"):
        for record in DatasetCatalog.get(name):
            objects = [(each["category_id"], *each["bbox"]) for each in record.get("annotations", ())]
            size = record.get("height"), record.get("width")
            content.update(repr((Path(record["file_name"]).name, size, objects)).encode())
    return content.hexdigest()


class Chosen(Sequence[Batch]):
    """Images to calibrate with, a batch each; one is decoded when it is first asked for.

    >>> chosen = calibration_images(cfg, Calibration(images=256))
    >>> own_share(chosen)  # decodes those of this process
    """

    def __init__(self, records: Sequence[Any], mapper: Callable[[Any], Any]) -> None:
        self._records, self._mapper = records, mapper
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        if place not in self._kept:
            record = self._records[place]
            with answered(f"{record['file_name']} cannot be calibrated with"):
                self._kept[place] = [self._mapper(record)]
        return self._kept[place]


def own_share(batches: Sequence[Batch]) -> Sequence[Batch]:
    """This process's of the batches that all ranks have."""
    return batches[rank() :: world_size()]


def in_eights(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Batches of one image, eight at a time: norms are re-estimated from them, and one image has no variance."""
    for first in range(0, len(batches), 8):
        yield [image for batch in batches[first : first + 8] for image in batch]


def calibration_images(cfg: CfgNode, calibration: Calibration) -> Chosen:
    """As many images of the training data in test form, chosen by the seed alone."""
    count, seed = calibration.images, calibration.seed
    if count < 1:
        raise UserError(f"calibration needs at least 1 image, got --calib-images {count}")
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name)
    with answered("the images to calibrate with, those of DATASETS.TRAIN, cannot be read"):
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        if count > len(records):
            _logger.warning("there are only %d images to calibrate with, not %d", len(records), count)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
        return Chosen([records[index] for index in order[:count]], DatasetMapper(cfg, is_train=False))


def check_dataset(name: str) -> None:
    """Refuse a name that nobody registered, and toy data that nobody made. Own data are registered by their name."""
    if not isinstance(name, str):  # a config may say (5,)
        raise UserError(f"a data set has a name, got {name!r}")
    if is_own(name):
        register_own(name)
    if name not in DatasetCatalog.list():
        raise UserError(f"there is no data set {name!r}{did_you_mean(name, DatasetCatalog.list())}")
    if name.startswith("toy_"):
        root = Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
        if not (root / "manifest.json").is_file():
            raise UserError(
                f"there are no toy data in {root}; make them with `ssql-det make-toy-data {root}`, "
                "and set DETECTRON2_DATASETS to their folder"
            )


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def own_name(given: str) -> str:
    """The name of the data that a command calls ``IMAGES:FILE.json``.

    >>> own_name("photos:labels.json")
    'coco:/home/ada/photos:/home/ada/labels.json'
    """
    images, _, file = given.rpartition(":")
    if not images or not file:
        raise UserError(f"own data are IMAGES:FILE.json, a folder and a file, as photos:labels.json; got {given!r}")
    return _PREFIX + ":".join(os.path.realpath(os.path.expanduser(each)) for each in (images, file))


def is_own(name: str) -> bool:
    return name.startswith(_PREFIX)


def row_name(name: str) -> str:
    """How rows call a data set: own data without the place on this machine.

    >>> row_name("coco:/home/ada/photos:/home/ada/labels.json"), row_name("voc_2007_test")
    ('coco:photos:labels.json', 'voc_2007_test')
    """
    return ":".join(part.rpartition("/")[2] for part in name.split(":")) if is_own(name) else name


def register_own(name: str) -> None:
    """Make the name known to the engine, with the classes of its file in the order of their ids."""
    if name in DatasetCatalog:
        return
    images, file = _places(name)
    classes = _classes(file)
    register_coco_instances(name, {}, str(file), str(images))
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = list(classes.values())
    metadata.thing_dataset_id_to_contiguous_id = {number: index for index, number in enumerate(classes)}


def classes_of(name: str) -> list[str]:
    register_own(name)
    return list(MetadataCatalog.get(name).thing_classes)


def require_fit(name: str) -> None:
    """Refuse data that would end a training: what ``ssql-det check-data`` finds, but for the images' own files."""
    images, file = _places(name)
    faults = [finding for finding in check_coco_file(file, images, name).findings if finding.fatal]
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(
            f"{faults[0].where}: {faults[0].what}{more}; `ssql-det check-data {images} --dataset {file}` shows all"
        )


def _places(name: str) -> tuple[Path, Path]:
    images, _, file = name.removeprefix(_PREFIX).rpartition(":")
    if not Path(images).is_dir():
        raise UserError(f"there is no folder of images {images or name!r}; own data are IMAGES:FILE.json")
    if not Path(file).is_file():
        raise UserError(f"there is no file {file}; own data are IMAGES:FILE.json, with annotations in COCO's format")
    return Path(images), Path(file)


def _classes(file: Path) -> dict[int, str]:
    """Names by ids, in the order of the ids."""
    try:
        content: Any = json.loads(file.read_text("utf-8"))
        names = {each["id"]: each["name"] for each in content["categories"]}
        classes = {number: names[number] for number in sorted(names)}
    except (ValueError, RecursionError, TypeError, KeyError):
        raise UserError(f"{file} is not in COCO's instances format; see `ssql-det check-data --help`") from None
    if not classes or not all(isinstance(each, str) for each in classes.values()):
        raise UserError(f"{file} names no classes; its list 'categories' has to, as {{'id': 1, 'name': 'cat'}}")
    return classes
