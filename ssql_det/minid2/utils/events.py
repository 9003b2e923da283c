"""The event storage, to which any module can write scalars during training, and writers of its content.

The writers print to the log, to a file of JSON lines and to TensorBoard.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from .file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_STORAGES: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage of the innermost ``with`` block."""
    assert _STORAGES, "there is no EventStorage: train inside 'with EventStorage():'"
    return _STORAGES[-1]


def has_event_storage() -> bool:
    return bool(_STORAGES)


class EventWriter:
    """``write`` writes events of the current storage."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class JSONWriter(EventWriter):
    """Appends new scalars to ``json_file``, a line for each iteration; noisy scalars as medians.

    {"iteration": 19, "loss": 1.92, "lr": 0.0072}
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        self._last_write = max(lines, default=self._last_write)
        for iteration, scalars in lines.items():
            self._file.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes new scalars, images and histograms to TensorBoard; images and histograms are then dropped."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._window_size = window_size
        self._arguments = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and it creates its file at once

        return SummaryWriter(**self._arguments)

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(self._window_size)
        new = {name: each for name, each in latest.items() if each[1] > self._last_write}
        for name, (value, iteration) in new.items():
            self._writer.add_scalar(name, value, iteration)
        self._last_write = max((iteration for _, iteration in new.values()), default=self._last_write)
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in vars(self):
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs a line: medians of losses and metrics, times, learning rate, memory, and with ``max_iter`` the ETA."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and time

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # after the last iteration there may be results, but no training metrics
            return
        known = storage.histories()
        eta = self._eta(storage)
        times = ""
        if "time" in known:
            times += f"time: {known['time'].global_avg():.4f}  last_time: {known['time'].latest():.4f}  "
        if "data_time" in known:
            average = known["data_time"].avg(storage.count_samples("data_time", self._window_size))
            times += f"data_time: {average:.4f}  last_data_time: {known['data_time'].latest():.4f}  "
        rate = f"{known['lr'].latest():.5g}" if "lr" in known else "N/A"
        memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else ""
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {storage.iter}  {self._medians(storage, 'loss')}  "
            f"{self._medians(storage, '[metric]')}  {times} lr: {rate}  {memory}"
        )

    def _medians(self, storage: EventStorage, part: str) -> str:
        """The medians of all scalars with ``part`` in their names."""
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if part in name
        )

    def _eta(self, storage: EventStorage) -> str:
        """Estimated from the iteration time if it is recorded, else from the time since the last line."""
        if self._max_iter is None:
            return ""
        left = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * left
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return str(datetime.timedelta(seconds=int(seconds)))
        now, last = time.perf_counter(), self._last_write
        self._last_write = (storage.iter, now)
        if last is None or last[0] == storage.iter:
            return ""
        return str(datetime.timedelta(seconds=int((now - last[1]) / (storage.iter - last[0]) * left)))


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
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    @property
    def iter(self) -> int:
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        return self._iter

    def step(self) -> None:
        self.iter += 1

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a value; ``smoothing_hint`` tells writers that it is noisy, and must not change."""
        name = self._prefix + name
        iteration = self.iter if cur_iter is None else cur_iter
        self._history[name].update(float(value), iteration)
        self._latest[name] = (float(value), iteration)
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"{name} already has smoothing_hint={hint}"

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float) -> None:
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Store an image for TensorBoard: RGB [3, H, W], in [0, 1] or uint8."""
        self._vis_data.append((img_name, img_tensor, self.iter))

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Store a tensor's histogram for TensorBoard."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": torch.linspace(low, high, bins + 1, dtype=torch.float32)[1:].tolist(),
                "bucket_counts": torch.histc(hist_tensor, bins=bins).tolist(),
                "global_step": self.iter,
            }
        )

    def clear_images(self) -> None:
        self._vis_data = []

    def clear_histograms(self) -> None:
        self._histograms = []

    def history(self, name: str) -> HistoryBuffer:
        if name not in self._history:
            raise KeyError(f"nothing was put under the name {name}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of each scalar and its iteration."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As ``latest``, but with the median over the last iterations for noisy scalars."""
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
        """The number of values in the last ``window_size`` iterations."""
        iterations = [iteration for _, iteration in self._history[name].values()]
        older = (
            index for index in reversed(range(len(iterations))) if iterations[index] <= iterations[-1] - window_size
        )
        return len(iterations) - 1 - next(older, -1)

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all scalars that are added in the block."""
        before, self._prefix = self._prefix, name.rstrip("/") + "/"
        yield
        self._prefix = before

    def __enter__(self) -> EventStorage:
        _STORAGES.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        assert _STORAGES[-1] is self
        _STORAGES.pop()
