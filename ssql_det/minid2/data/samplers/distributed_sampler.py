"""Distributed samplers: infinite for training, each index once for evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ...utils import comm

__all__ = ["InferenceSampler", "TrainingSampler"]


class TrainingSampler(Sampler[int]):
    """Infinite indices, shuffled anew each epoch; rank r of n takes every n-th index, starting with r.

    Without a seed all ranks must construct it together, to agree on a random one.

    >>> list(itertools.islice(TrainingSampler(3, shuffle=False), 5))
    [0, 1, 2, 0, 1]
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) expects an int. Got type {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int. Got {size}.")
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class InferenceSampler(Sampler[int]):
    """A contiguous range of indices for each rank; if they do not divide evenly, the first ranks get one more."""

    def __init__(self, size: int) -> None:
        assert size > 0, f"an evaluation needs images, got {size}"
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        """
        >>> InferenceSampler._get_local_indices(10, 4, 1)
        range(3, 6)
        """
        share, left = divmod(total_size, world_size)
        start = rank * share + min(rank, left)
        return range(start, start + share + (rank < left))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
