"""What is recorded of a block: its inputs in the quantized and in the float network, its float outputs, and weights of
the outputs' errors, if a method has them.

Records stay on the CPU, and are limited to ``MAX_BYTES`` per block: if those of all images need more, each image gives
one random window of its feature maps, or some of its regions. The float outputs are then those of the float block on
the float window, and what was recorded of the outputs of a whole map is cut to this window.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ssql_det.ptq.blocks import Block, copy_tensors, list_tensors, map_tensors, replace_tensors
from ssql_det.quant.forward import get_device

MAX_BYTES = 2**30
HELD_OUT_PERIOD = 4  # every fourth image is kept to compare errors
_STEP_ELEMENTS = 2**18  # of the larger of a block's inputs and outputs: the samples of one iteration
_MAX_SAMPLES = 32  # of one iteration
T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """Some samples of a block: images or, in a head, regions. They are the first axis of all tensors."""

    inputs: Any  # in the quantized network
    float_inputs: Any
    outputs: Any  # of the float network
    weights: Any = None  # of the squared errors of the outputs, one for each element; ``None``: they are 1

    def __len__(self) -> int:
        return len(list_tensors(self.inputs)[0])

    def select(self, rows: Sequence[int], device: torch.device) -> Samples:
        index = torch.as_tensor(rows)
        parts = (self.inputs, self.float_inputs, self.outputs, self.weights)
        selected = (None if part is None else map_tensors(lambda x: x[index].to(device), part) for part in parts)
        return Samples(*selected)


class Records:
    """The samples of some images, grouped by shape, so that those of one group can be run together."""

    def __init__(self, samples: Sequence[Samples]) -> None:
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, each in enumerate(samples):
            if len(each):
                groups[tuple(x.shape[1:] for x in list_tensors(each.inputs))].append(index)
        self._indices = [*groups.values()]  # of the images of each group
        self.groups = [_join_samples([samples[index] for index in indices]) for indices in self._indices]
        self._rows = [(index, row) for index, group in enumerate(self.groups) for row in range(len(group))]

    def __len__(self) -> int:
        return len(self._rows)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Weights of the squared errors, for each of the images that the samples were made of."""
        pairs = zip(self.groups, self._indices, strict=True)
        self.groups = [replace(group, weights=_join([weights[each] for each in indices])) for group, indices in pairs]

    def choose_num_samples(self) -> int:
        """Of one iteration: as many as have ``_STEP_ELEMENTS`` elements, at least one."""
        group = self.groups[0]
        elements = max(sum(x[0].numel() for x in list_tensors(part)) for part in (group.inputs, group.outputs))
        return min(max(_STEP_ELEMENTS // elements, 1), _MAX_SAMPLES)

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


def split_held_out(values: Sequence[T]) -> tuple[list[T], list[T]]:
    """What belongs to the images to train on, and to those on which errors are compared.

    >>> split_held_out([1, 2, 3, 4, 5])
    ([1, 2, 3, 5], [4])
    """
    is_held_out = [index % HELD_OUT_PERIOD == HELD_OUT_PERIOD - 1 for index in range(len(values))]
    pairs = [*zip(values, is_held_out, strict=True)]
    return [value for value, held in pairs if not held], [value for value, held in pairs if held]


def _join_samples(samples: list[Samples]) -> Samples:
    names = ("inputs", "float_inputs", "outputs")
    return Samples(*(_join([getattr(each, name) for each in samples]) for name in names))


def _join(parts: list[Any]) -> Any:
    return replace_tensors(parts[0], iter(map(torch.cat, zip(*map(list_tensors, parts), strict=True))))


class Recorder:
    """Makes the samples of a block batch by batch; all of them together have at most ``max_bytes``.

    The network must run as it is for :meth:`add_float` to be float, and be float at the call. ``has_weights``: errors
    get weights, which take as much memory as outputs.
    """

    def __init__(
        self, model: nn.Module, block: Block, num_batches: int, seed: int, max_bytes: int, has_weights: bool = False
    ) -> None:
        self._model, self._block, self._has_weights = model, block, has_weights
        self.num_batches, self._bytes_per_batch = num_batches, max_bytes / max(num_batches, 1)
        self._generator = make_generator(seed, block.name, "windows")
        self._window: int | None = None  # the side of a window in the smallest map, chosen for the first batch
        self._crops: list[_Window | _Regions | None] = []
        self._float: dict[int, tuple[Any, Any]] = {}  # inputs and outputs
        self._forms: list[Any] = []  # of the outputs: tensors without data

    @property
    def is_cropped(self) -> bool:
        return any(crop is not None for crop in self._crops)

    @torch.no_grad()
    def add_float(self, inputs: Any) -> None:
        """Add a batch; the network must be float at the call."""
        outputs = self._run(inputs)
        crop = self._choose_crop(inputs, outputs)
        if crop is not None:
            inputs = crop.cut_inputs(inputs)
            outputs = self._run(inputs)
        self._float[len(self._crops)] = inputs, outputs
        self._crops.append(crop)
        self._forms.append(map_tensors(lambda x: x.to("meta"), outputs))

    def make_samples(self, index: int, inputs: Any) -> Samples:
        """The samples of a batch, with its inputs in the quantized network; what was recorded of it goes into them."""
        crop = self._crops[index]
        return Samples(inputs if crop is None else crop.cut_inputs(inputs), *self._float.pop(index))

    def cut_outputs(self, index: int, values: Sequence[Tensor]) -> Any:
        """Values at the outputs of a whole batch, such as gradients, where and in the form outputs were recorded."""
        crop, form = self._crops[index], self._forms[index]
        if crop is not None:
            values = [crop.cut_output(x, target) for x, target in zip(values, list_tensors(form), strict=True)]
        return copy_tensors(replace_tensors(form, iter(values)))

    def _choose_crop(self, inputs: Any, outputs: Any) -> _Window | _Regions | None:
        tensors = list_tensors(inputs)
        bytes_of_outputs = (1 + self._has_weights) * sum(x.nbytes for x in list_tensors(outputs))
        num_bytes = 2 * sum(x.nbytes for x in tensors) + bytes_of_outputs
        if not self._block.has_regions and all(x.ndim == 4 for x in tensors):
            smallest = min((x.shape[2:] for x in tensors), key=math.prod)
            if self._window is None:
                self._window = max(int(math.sqrt(self._bytes_per_batch / num_bytes * math.prod(smallest))), 1)
            windows = _choose_windows(tensors, self._window, self._generator)
            sizes = [x.shape[2:] for x in tensors]
            return None if self._window >= max(smallest) else _Window(sizes, windows)
        length = len(tensors[0])
        count = max(int(length * self._bytes_per_batch / max(num_bytes, 1)), 1)
        if count >= length:
            return None
        return _Regions(torch.randperm(length, generator=self._generator)[:count].sort()[0])

    def _run(self, inputs: Any) -> Any:
        device = get_device(self._model)
        return copy_tensors(self._block.run(self._model, map_tensors(lambda x: x.to(device), inputs)))


@dataclass(frozen=True)
class _Regions:
    """Some regions of an image."""

    rows: Tensor

    def cut_inputs(self, value: Any) -> Any:
        return map_tensors(lambda x: x[self.rows], value)

    def cut_output(self, x: Tensor, target: Tensor) -> Tensor:
        return x[self.rows.to(x.device)]


@dataclass(frozen=True)
class _Window:
    """A window of each of the maps that a block gets."""

    sizes: Sequence[torch.Size]  # of the whole maps
    windows: Sequence[tuple[slice, slice]]

    def cut_inputs(self, value: Any) -> Any:
        remaining = iter(self.windows)

        def cut(x: Tensor) -> Tensor:
            rows, columns = next(remaining)
            return x[:, :, rows, columns].clone()

        return map_tensors(cut, value)

    def cut_output(self, x: Tensor, target: Tensor) -> Tensor:
        """The part of an output of the whole maps that ``target``, one of the windows, shows: of an output in the size
        of an input exactly, else (as behind a stride) to a position."""
        if x.shape == target.shape:
            return x
        largest = max(range(len(self.sizes)), key=lambda index: math.prod(self.sizes[index]))
        found = self.sizes.index(x.shape[2:]) if x.shape[2:] in self.sizes else largest
        for axis in (0, 1):
            size, length = x.shape[2 + axis], target.shape[2 + axis]
            start = round(self.windows[found][axis].start * size / self.sizes[found][axis])
            x = x.narrow(2 + axis, min(start, size - length), length)
        return x


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


def make_generator(seed: int, *names: str, device: torch.device | None = None) -> torch.Generator:
    """A generator whose numbers depend on the seed and the names alone."""
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return torch.Generator(device or torch.device("cpu")).manual_seed(int.from_bytes(digest[:7], "big"))
