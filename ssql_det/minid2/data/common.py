"""Wrappers of data sets: lists as bytes, mapped items, iteration by a sampler, batches by aspect ratio."""

from __future__ import annotations

import copy
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils import data
from torch.utils.data import Sampler

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)

_ATTEMPTS_BEFORE_WARNING = 3


class DatasetFromList(data.Dataset[Any]):
    """A data set of a list, by default serialized to one tensor, which forked workers share instead of copying it.

    ``copy`` only matters without ``serialize``: deserialized items are always new.
    """

    def __init__(self, lst: list[Any], copy: bool = True, serialize: bool = True) -> None:
        self._lst = _SerializedList(lst) if serialize else lst
        self._copy = copy and not serialize

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        return copy.deepcopy(self._lst[idx]) if self._copy else self._lst[idx]


class _SerializedList:
    def __init__(self, lst: list[Any]) -> None:
        items = [pickle.dumps(each, protocol=pickle.HIGHEST_PROTOCOL) for each in lst]
        self._ends = torch.tensor([0, *map(len, items)], dtype=torch.int64).cumsum(dim=0)
        self._bytes = torch.frombuffer(bytearray(b"".join(items)), dtype=torch.uint8)
        logger.info(f"The dicts of {len(self)} images take {len(self._bytes) / 2**20:.2f} MiB")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, idx: int) -> Any:
        index = range(len(self))[idx]
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(self._bytes[start:end].numpy().data)


class MapDataset(data.Dataset[Any]):
    """Applies a function to the items. If it returns None, another item is used: a random one, or the next one."""

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, data.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = map_func
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))

    def __getnewargs__(self) -> tuple[Any, Callable[[Any], Any]]:
        return self._dataset, self._map_func  # for pickling

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        index, failed = int(idx), 0
        while (item := self._map_func(self._dataset[index])) is None:
            failed += 1
            self._fallback_candidates.discard(index)
            if not self._fallback_candidates:
                raise ValueError(f"the mapper {self._map_func} returned None for each of {len(self)} items")
            index = self._rng.choice([*self._fallback_candidates])
            if failed >= _ATTEMPTS_BEFORE_WARNING:
                logger.warning(f"The mapper returned None for item {idx} and {failed - 1} replacements")
        self._fallback_candidates.add(index)
        return item


class _MapIterableDataset(data.IterableDataset[Any]):
    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        return (item for item in map(self._map_func, self._dataset) if item is not None)


class ToIterableDataset(data.IterableDataset[Any]):
    """Iterates over a data set in the order of a sampler.

    Every worker runs the whole sampler and, with ``shard_sampler``, keeps every n-th chunk of ``shard_chunk_size``
    indices; without, the sampler must distribute the indices itself.
    """

    def __init__(
        self, dataset: Any, sampler: Sampler[int], shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        assert not isinstance(dataset, data.IterableDataset), dataset
        assert isinstance(sampler, Sampler), sampler
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        worker = data.get_worker_info()
        for position, index in enumerate(self.sampler):
            if worker is None or not self.shard_sampler or self._turn(position, worker.num_workers) == worker.id:
                yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # not every sampler has an end

    def _turn(self, position: int, workers: int) -> int:
        return position // self.shard_chunk_size % workers


class AspectRatioGroupedDataset(data.IterableDataset[list[Any]]):
    """Batches of images that are all wider than high, or all not, which reduces padding."""

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: tuple[list[Any], list[Any]] = ([], [])

    def __iter__(self) -> Iterator[list[Any]]:
        for item in self.dataset:
            bucket = self._buckets[item["width"] <= item["height"]]
            bucket.append(item)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                bucket.clear()  # before the yield: the generator may not be resumed
                yield batch
