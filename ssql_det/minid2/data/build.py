"""Loaders for training and test, built from arguments or a config."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate  # type: ignore[import-untyped]
from termcolor import colored
from torch.utils import data
from torch.utils.data import DataLoader, Sampler

from ..config import CfgNode, configurable, refuse_unsupported
from ..utils.comm import get_world_size
from ..utils.env import seed_all_rng
from ..utils.logger import log_first_n
from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, TrainingSampler

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
]

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]
Mapper = Callable[[dict[str, Any]], Any]

_MAX_NAME_LENGTH = 13  # of a class, in a table of three columns


def get_detection_dataset_dicts(
    names: str | Sequence[str], filter_empty: bool = True, *, check_consistency: bool = True
) -> Any:
    """The dicts of one or several data sets; ``filter_empty`` drops images without usable annotations."""
    names = [names] if isinstance(names, str) else names
    if not names:
        raise ValueError("there is no data set: set DATASETS.TRAIN or DATASETS.TEST")
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], data.Dataset):
        return data.ConcatDataset(loaded) if len(loaded) > 1 else loaded[0]
    for name, records in zip(names, loaded, strict=True):
        if not records:
            raise ValueError(f"Dataset '{name}' is empty!")
    records = list(itertools.chain.from_iterable(loaded))
    if "annotations" not in records[0]:
        return records
    if filter_empty:
        records = filter_images_with_only_crowd_annotations(records)
    if check_consistency and all(hasattr(MetadataCatalog.get(name), "thing_classes") for name in names):
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(records, MetadataCatalog.get(names[0]).thing_classes)
    if not records:
        raise ValueError(f"no image in {', '.join(names)} has an object that is not a crowd")
    return records


def filter_images_with_only_crowd_annotations(dataset_dicts: Records) -> Records:
    """Drop images that have no annotations or only crowds."""
    kept = [each for each in dataset_dicts if any(not obj.get("iscrowd", 0) for obj in each["annotations"])]
    removed = len(dataset_dicts) - len(kept)
    logger.info(f"Removed {removed} images with no usable annotations. {len(kept)} images left.")
    return kept


def print_instances_class_histogram(dataset_dicts: Iterable[dict[str, Any]], class_names: Sequence[str]) -> None:
    """Log the number of instances of each class, without crowds."""
    annotations = itertools.chain.from_iterable(each["annotations"] for each in dataset_dicts)
    classes = np.array([each["category_id"] for each in annotations if not each.get("iscrowd", 0)], dtype=int)
    invalid = classes[(classes < 0) | (classes >= len(class_names))]
    if len(invalid):
        raise ValueError(f"Got an invalid category_id={invalid[0]} for a dataset of {len(class_names)} classes")
    counts = np.bincount(classes, minlength=len(class_names)).tolist()
    cells: list[Any] = []
    for name, count in zip(class_names, counts, strict=True):
        cells += [name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 2]}..", count]
    columns = min(6, len(cells))
    cells += [None] * (columns - len(cells) % columns)
    if len(class_names) > 1:
        cells += ["total", sum(counts)]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    headers = ["category", "#instances"] * (columns // 2)
    table = tabulate(rows, headers=headers, tablefmt="pipe", numalign="left", stralign="center")
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {len(class_names)} categories:\n{colored(table, 'cyan')}",
        key="message",
    )


def build_batch_data_loader(
    dataset: Any,
    sampler: Sampler[int] | None,
    total_batch_size: int | None,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A loader whose batches are lists: ``total_batch_size`` over all processes or ``single_gpu_batch_size`` in each.

    ``sampler`` is None for an iterable data set. ``seed`` seeds the workers' generators.
    """
    batch_size = _batch_size(total_batch_size, single_gpu_batch_size)
    logger.info(f"Making batched data loader with batch_size={batch_size}")
    settings = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if isinstance(dataset, data.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    else:
        assert sampler is not None, "a dataset that is not an IterableDataset needs a sampler"
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    if not aspect_ratio_grouping:
        collate = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate, **settings)
    assert drop_last, "Aspect ratio grouping will drop incomplete batches."
    items = DataLoader(dataset, collate_fn=operator.itemgetter(0), **settings)  # batches of one item, unpacked
    batches = AspectRatioGroupedDataset(items, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _batch_size(total: int | None, each: int | None) -> int:
    if total and each:
        raise ValueError("total_batch_size and single_gpu_batch_size are mutually exclusive: give one")
    if each:
        return each
    processes = get_world_size()
    if not total or total < 0 or total % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH, the total batch size, must be divisible by the number of gpus ({processes}), "
            f"got {total}"
        )
    return total // processes


def _train_loader_from_config(
    cfg: CfgNode, mapper: Mapper | None = None, *, dataset: Any = None, sampler: Sampler[int] | None = None
) -> dict[str, Any]:
    refuse_unsupported(cfg)
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if sampler is None and not isinstance(dataset, data.IterableDataset):
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            raise ValueError(
                f"DATALOADER.SAMPLER_TRAIN is '{cfg.DATALOADER.SAMPLER_TRAIN}', but minid2 has only 'TrainingSampler': "
                "set that, or install detectron2 itself"
            )
        sampler = TrainingSampler(len(dataset), seed=cfg.SEED)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)  # type: ignore[untyped-decorator]
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """An infinite loader of batches, by default with a :class:`TrainingSampler`; ``dataset`` may be a list of dicts."""
    dataset = _mapped(dataset, mapper)
    if sampler is None and not isinstance(dataset, data.IterableDataset):
        sampler = TrainingSampler(len(dataset))
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Mapper | None = None
) -> dict[str, Any]:
    refuse_unsupported(cfg)
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)  # type: ignore[untyped-decorator]
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler[int] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """A loader of each image once, in order, in batches of one; several processes share the images."""
    dataset = _mapped(dataset, mapper)
    if isinstance(dataset, data.IterableDataset):
        assert sampler is None, "sampler must be None if dataset is IterableDataset"
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    collate = collate_fn or trivial_batch_collator
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate)


def _mapped(dataset: Any, mapper: Mapper | None) -> Any:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Images differ in size, so a batch is the list of its items."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed a worker's generators."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
