"""Ranges: what was observed at each activation point. Merged over shards and ranks, saved to and read from a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.ranks import all_gather, world_size
from ssql_det.quant.affine import QParams, choose_qparams
from ssql_det.quant.observers import MinMax, Observer, ObserverFactory
from ssql_det.quant.points import QuantPoint

FORMAT = "ssql_det ranges"
VERSION = 1

_OBSERVERS: dict[str, type[Observer]] = {kind.name: kind for kind in (MinMax,)}


class Ranges:
    """An observer for each activation point of a network, by ``QuantPoint.key``.

    >>> ranges = calibrate(model, loader, points)
    >>> ranges.save("ranges.json", model)
    >>> ranges = Ranges.load("ranges.json", model, points)
    """

    def __init__(self, observers: dict[str, Observer]) -> None:
        self._observers = observers

    @classmethod
    def empty(cls, points: Iterable[QuantPoint], observer: ObserverFactory = MinMax) -> Ranges:
        return cls({point.key: observer() for point in points if not point.is_weight})

    def __iter__(self) -> Iterator[str]:
        return iter(self._observers)

    def __getitem__(self, point: QuantPoint) -> Observer:
        self.require([point])
        return self._observers[point.key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._state() == other._state()

    __hash__ = None  # type: ignore[assignment]  # ranges change as they observe

    def require(self, points: Iterable[QuantPoint]) -> None:
        """Refuse unless every activation point has its observer, naming the first that has not."""
        for point in points:
            if not point.is_weight and point.key not in self._observers:
                raise UserError(
                    f"the ranges have no entry for {point.key}: they are of another model or another scope; "
                    "calibrate this one"
                )

    def require_finite(self) -> None:
        """Refuse NaN, infinities and ranges too wide for their type, naming the path where they first passed."""
        seen = [(key, observer.range(bits=8)) for key, observer in self._observers.items() if not observer.is_empty]
        if not seen:
            return
        finite = torch.stack([(high - low).isfinite().all() for _, (low, high) in seen]).tolist()  # one look for all
        if all(finite):
            return
        key = seen[finite.index(False)][0]
        raise UserError(
            f"NaN or infinite values reached {key}; check the images' normalization and that the weights are finite"
        )

    def qparams(self, point: QuantPoint, bits: int, device: torch.device | None = None) -> QParams | None:
        """The grid of a point at a width, or ``None`` where nothing was observed."""
        observer = self[point]
        if observer.is_empty:
            return None
        low, high = (end.to(device) for end in observer.range(bits))
        if point.from_zero:
            low = low.clamp(max=0)
        return choose_qparams(low, high, bits, axis=observer.axis)

    def merge(self, other: Ranges) -> None:
        """Become the ranges of both streams: calibration in shards."""
        if self._observers.keys() != other._observers.keys():
            raise ValueError("only ranges of the same points can be merged")
        for key, observer in self._observers.items():
            observer.merge(other._observers[key])

    def all_reduce(self) -> None:
        """Become, on every rank, the ranges of all ranks: N processes then equal one."""
        if world_size() == 1:
            return
        for states in all_gather(self._state()):
            self.merge(_from_state(states))

    def save(self, path: str | os.PathLike[str], model: nn.Module) -> None:
        """Write the ranges with the signature of the model they were observed in."""
        record = {"format": FORMAT, "version": VERSION, "model": signature(model), "points": self._state()}
        with atomic_write(path, "w") as file:
            json.dump(record, file, indent=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, points: Sequence[QuantPoint]) -> Ranges:
        """Read ranges for these points of this model; those of another model or other weights are refused."""
        record = _read_record(path)
        try:
            ranges, theirs = _from_state(record["points"]), record["model"]
            ranges._require_ordered()
            their_tensors, their_digest = dict(theirs["tensors"]), theirs["digest"]
        except (AttributeError, KeyError, TypeError, ValueError) as damage:
            raise UserError(f"{path} is damaged ({damage!r}); calibrate again") from None
        ranges.require(points)
        ours = signature(model)
        for name in [*ours["tensors"], *their_tensors]:
            if ours["tensors"].get(name) != their_tensors.get(name):
                raise UserError(
                    f"{path} was calibrated on another model: {name} is {their_tensors.get(name, 'missing')} there "
                    f"and {ours['tensors'].get(name, 'missing')} here; calibrate this one"
                )
        if ours["digest"] != their_digest:
            raise UserError(f"{path} was calibrated on other weights of this model; calibrate again with these")
        return ranges

    def _require_ordered(self) -> None:
        """What was observed goes from a finite number up to one, in each channel if it is by channels."""
        for key, observer in self._observers.items():
            if observer.is_empty:
                continue
            low, high = observer.range(bits=8)
            channels = 0 if observer.axis is None else 1
            if low.shape != high.shape or low.dim() != channels or not isinstance(observer.axis, int | None):
                raise ValueError(f"{key} has an end for other channels than it says")
            if not ((low <= high) & (high - low).isfinite()).all():
                raise ValueError(f"{key} goes from {low.tolist()} to {high.tolist()}")

    def _state(self) -> dict[str, Any]:
        return {key: {"observer": each.name, **each.state()} for key, each in self._observers.items()}


def signature(model: nn.Module) -> dict[str, Any]:
    """What names a model: every parameter's and buffer's shape, and a digest of their values."""
    digest = hashlib.sha256()
    shapes = {}
    for name, tensor in model.state_dict().items():
        shapes[name] = list(tensor.shape)
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return {"tensors": shapes, "digest": digest.hexdigest()}


def _from_state(states: dict[str, Any]) -> Ranges:
    return Ranges({key: _OBSERVERS[state["observer"]].from_state(state) for key, state in states.items()})


def _read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        record = json.loads(Path(path).read_text("utf-8"))
    except OSError as failure:
        raise UserError(f"cannot read ranges from {path}: {failure.strerror or failure}") from None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} does not hold calibrated ranges; name a file that calibration wrote")
    if not isinstance(record.get("version"), int) or record["version"] > VERSION:
        raise UserError(f"{path} has version {record.get('version')}, this ssql_det reads up to {VERSION}; update it")
    return record
