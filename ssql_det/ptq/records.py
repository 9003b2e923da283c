"""What is recorded of a block: its inputs in the quantized and in the float network, and its float outputs.

Records stay on the CPU, and are limited to ``MAX_BYTES`` per block: if those of all images need more, each image gives
one random window of its feature maps, or some of its regions. The float outputs are then those of the float block on
the float window.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.ptq.blocks import Block, copy_tensors, list_tensors, map_tensors, replace_tensors
from ssql_det.quant.forward import get_device

MAX_BYTES = 2**30
Crop = Callable[[Any], Any]


@dataclass(frozen=True)
class Samples:
    """Some samples of a block: images or, in a head, regions. They are the first axis of all tensors."""

    inputs: Any  # in the quantized network
    float_inputs: Any
    outputs: Any  # of the float network

    def __len__(self) -> int:
        return len(list_tensors(self.inputs)[0])

    def select(self, rows: Sequence[int], device: torch.device) -> Samples:
        index = torch.as_tensor(rows)
        parts = (self.inputs, self.float_inputs, self.outputs)
        return Samples(*(map_tensors(lambda x: x[index].to(device), part) for part in parts))


class Records:
    """The samples of some images, grouped by shape, so that those of one group can be run together."""

    def __init__(self, samples: Sequence[Samples]) -> None:
        groups: dict[Any, list[Samples]] = defaultdict(list)
        for each in samples:
            if len(each):
                groups[tuple(x.shape[1:] for x in list_tensors(each.inputs))].append(each)
        self.groups = [_join(group) for group in groups.values()]
        self._rows = [(index, row) for index, group in enumerate(self.groups) for row in range(len(group))]

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, count: int, generator: torch.Generator) -> list[tuple[int, list[int]]]:
        """Random samples, as the index of a group and rows in it; samples of one group are together."""
        found: dict[int, list[int]] = defaultdict(list)
        for index in torch.randint(len(self), (count,), generator=generator).tolist():
            group, row = self._rows[index]
            found[group].append(row)
        return sorted(found.items())

    def split(self, count: int) -> Iterator[tuple[int, list[int]]]:
        """All samples in order, up to ``count`` at a time."""
        for index, group in enumerate(self.groups):
            for start in range(0, len(group), count):
                yield index, [*range(start, min(start + count, len(group)))]


def _join(samples: list[Samples]) -> Samples:
    def join(parts: list[Any]) -> Any:
        return replace_tensors(parts[0], iter(map(torch.cat, zip(*map(list_tensors, parts), strict=True))))

    return Samples(*(join([getattr(each, name) for each in samples]) for name in ("inputs", "float_inputs", "outputs")))


class Recorder:
    """Makes the samples of a block batch by batch; all of them together have at most ``max_bytes``.

    The network must run as it is for :meth:`add_float` to be float, and be float at the call.
    """

    def __init__(self, model: nn.Module, block: Block, num_batches: int, seed: int, max_bytes: int) -> None:
        self._model, self._block = model, block
        self._bytes_per_batch = max_bytes / max(num_batches, 1)
        self._generator = make_generator(seed, block.name, "windows")
        self._window: int | None = None  # the side of a window in the smallest map, chosen for the first batch
        self._crops: list[Crop | None] = []
        self._float: list[tuple[Any, Any]] = []  # inputs and outputs

    @property
    def is_cropped(self) -> bool:
        return any(crop is not None for crop in self._crops)

    @torch.no_grad()
    def add_float(self, inputs: Any) -> None:
        """Add a batch; the network must be float at the call."""
        outputs = self._run(inputs)
        crop = self._choose_crop(inputs, outputs)
        if crop is not None:
            inputs = crop(inputs)
            outputs = self._run(inputs)
        self._crops.append(crop)
        self._float.append((inputs, outputs))

    def make_samples(self, index: int, inputs: Any) -> Samples:
        """The samples of a batch, with its inputs in the quantized network."""
        crop = self._crops[index]
        return Samples(inputs if crop is None else crop(inputs), *self._float[index])

    def _choose_crop(self, inputs: Any, outputs: Any) -> Crop | None:
        tensors = list_tensors(inputs)
        num_bytes = 2 * sum(x.nbytes for x in tensors) + sum(x.nbytes for x in list_tensors(outputs))
        if not self._block.has_regions and all(x.ndim == 4 for x in tensors):
            smallest = min((x.shape[2:] for x in tensors), key=math.prod)
            if self._window is None:
                self._window = max(int(math.sqrt(self._bytes_per_batch / num_bytes * math.prod(smallest))), 1)
            windows = _choose_windows(tensors, self._window, self._generator)
            return None if self._window >= max(smallest) else partial(_crop_maps, windows=windows)
        length = len(tensors[0])
        count = max(int(length * self._bytes_per_batch / max(num_bytes, 1)), 1)
        if count >= length:
            return None
        rows = torch.randperm(length, generator=self._generator)[:count].sort()[0]
        return partial(map_tensors, lambda x: x[rows])

    def _run(self, inputs: Any) -> Any:
        device = get_device(self._model)
        return copy_tensors(self._block.run(self._model, map_tensors(lambda x: x.to(device), inputs)))


def _choose_windows(maps: Sequence[Tensor], side: int, generator: torch.Generator) -> list[tuple[slice, slice]]:
    """A window of each map: the same part of all maps if their sizes are multiples of the smallest one's, else windows
    of about this part. ``side`` is that of the window in the smallest map; a smaller map is taken whole."""
    starts = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    smallest = min(maps, key=lambda x: x.shape[2] * x.shape[3]).shape[2:]
    windows = []
    for x in maps:
        window = []
        for axis in (0, 1):
            size, least = x.shape[2 + axis], smallest[axis]
            length = min(side, least)
            if size % least == 0:
                ratio = size // least
                start = int(starts[axis] * (least - length + 1)) * ratio
                window.append(slice(start, start + length * ratio))
            else:
                length = round(length * size / least)
                start = int(starts[axis] * (size - length + 1))
                window.append(slice(start, start + length))
        windows.append((window[0], window[1]))
    return windows


def _crop_maps(value: Any, windows: Sequence[tuple[slice, slice]]) -> Any:
    remaining = iter(windows)

    def crop(x: Tensor) -> Tensor:
        rows, columns = next(remaining)
        return x[:, :, rows, columns].clone()

    return map_tensors(crop, value)


def make_generator(seed: int, *names: str, device: torch.device | None = None) -> torch.Generator:
    """A generator whose numbers depend on the seed and the names alone."""
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return torch.Generator(device or torch.device("cpu")).manual_seed(int.from_bytes(digest[:7], "big"))
