"""What happens while a model trains: scalars by name, put by whichever module knows them into the storage at hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from fvcore.common.history_buffer import HistoryBuffer

__all__ = ["EventStorage", "get_event_storage", "has_event_storage"]

_STORAGES: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage whose ``with`` block this is called in, the innermost."""
    assert _STORAGES, "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    return _STORAGES[-1]


def has_event_storage() -> bool:
    return bool(_STORAGES)


class EventStorage:
    """The history of every scalar, by iteration.

    >>> with EventStorage(start_iter=10) as storage:
    ...     get_event_storage().put_scalar("loss", 2.5)
    >>> storage.latest()
    {'loss': (2.5, 10)}
    """

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._history: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._prefix = ""

    @property
    def iter(self) -> int:
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    def step(self) -> None:
        self.iter += 1

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a value; ``smoothing_hint`` tells writers that it is noisy, and stays what it first was."""
        name = self._prefix + name
        iteration = self.iter if cur_iter is None else cur_iter
        self._history[name].update(float(value), iteration)
        self._latest[name] = (float(value), iteration)
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float) -> None:
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Each scalar's last value and its iteration."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As ``latest``, but with the median over the last iterations for what is noisy."""
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self._latest.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values were put in the last ``window_size`` iterations."""
        iterations = [iteration for _, iteration in self._history[name].values()]
        older = (
            index for index in reversed(range(len(iterations))) if iterations[index] <= iterations[-1] - window_size
        )
        return len(iterations) - 1 - next(older, -1)

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put a prefix before the names of all scalars inside the block."""
        before, self._prefix = self._prefix, name.rstrip("/") + "/"
        yield
        self._prefix = before

    def __enter__(self) -> EventStorage:
        _STORAGES.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        assert _STORAGES[-1] is self
        _STORAGES.pop()
