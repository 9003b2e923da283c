"""The file of a quantization: safetensors, whose header says in JSON which network, scheme, points and images it is of.

::

    __metadata__  format   "ssql_det quantization"      version      "1"
                  scheme   "act=mse"                    calibration  {"images": 256, "seed": 0, "data": "..."}
                  points   [{"path": "conv1", "side": "weight", "bits": 8}, ...]
                  model    {"digest": "9f3c...", "tensors": {"conv1.weight": [64, 3, 7, 7], ...}}
    layer1.0.conv2:input/ends       the least and the greatest value observed at a point
    layer1.0.conv2:input/learned.x  what its quantizer learned
    4w4a/norms.bn1.running_mean     what norms have at a width
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import atomic_write
from ssql_det.core.rows import Calibration
from ssql_det.core.tensor_files import is_safetensors, read_safetensors, write_safetensors
from ssql_det.quant.points import QuantPoint, Side
from ssql_det.quant.scheme import Scheme
from ssql_det.quant.tracing import Chain

FORMAT, VERSION = "ssql_det quantization", 1
_STORED_NAMES = {"fixed_range": "ends", "include_zero": "with_zero"}  # of a point's fields


@dataclass(frozen=True)
class Signature:
    """What names a model: every parameter's and buffer's shape, and a digest of their values."""

    digest: str
    tensors: Mapping[str, list[int]]

    def require_same(self, theirs: Signature, path: object) -> None:
        """Refuse a file that is of another network, naming the first tensor that differs, or of other weights."""
        for name in [*self.tensors, *theirs.tensors]:
            ours, other = self.tensors.get(name, "missing"), theirs.tensors.get(name, "missing")
            if ours != other:
                shown = printable(name, 80)
                raise UserError(
                    f"{path} was calibrated on another model: {shown} is {other} there and {ours} here; calibrate this "
                    "one"
                )
        if self.digest != theirs.digest:
            raise UserError(f"{path} was calibrated on other weights of this model; calibrate again with these")


@dataclass(frozen=True)
class Content:
    """All that a file holds."""

    scheme: Scheme
    points: tuple[QuantPoint, ...]
    calibration: Calibration | None
    signature: Signature
    tensors: Mapping[str, Tensor]
    chains: tuple[Chain, ...] = ()


def compute_signature(model: nn.Module) -> Signature:
    digest = hashlib.sha256()
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = list(tensor.shape)
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return Signature(digest.hexdigest(), tensors)


def write(path: str | os.PathLike[str], content: Content) -> None:
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "scheme": str(content.scheme),
        "calibration": json.dumps(asdict(content.calibration) if content.calibration else None),
        "points": json.dumps([_plain(point) for point in content.points]),
        "model": json.dumps(asdict(content.signature)),
        "chains": json.dumps([[each.layer, each.norm, each.source and each.source.key] for each in content.chains]),
    }
    with atomic_write(path) as file:
        write_safetensors(content.tensors, metadata, file)


def read(path: str | os.PathLike[str]) -> Content:
    """The content of a file, each part of its type; whether it fits a model is for the caller to ask."""
    if not Path(path).exists():
        raise UserError(f"cannot read a quantization from {path}: there is no such file")
    if not Path(path).is_file() or not is_safetensors(path):
        raise UserError(f"{path} does not hold a quantization; name a file that a sweep or Quantization.save wrote")
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} does not hold a quantization; name a file that a sweep or Quantization.save wrote")
    version = metadata.get("version", "")
    if not version.isdecimal() or len(version) > 4 or int(version) > VERSION:
        shown = printable(version, 20)
        raise UserError(f"{path} has version {shown}, this ssql_det reads up to {VERSION}; update it")
    scheme = _scheme(path, metadata.get("scheme", ""))
    try:
        calibration = json.loads(metadata["calibration"])
        model = json.loads(metadata["model"])
        points = tuple(_point(**each) for each in json.loads(metadata["points"]))
        places = {point.key: point for point in points}
        return Content(
            scheme=scheme,
            points=points,
            calibration=None if calibration is None else _calibration(**calibration),
            signature=Signature(str(model["digest"]), dict(model["tensors"])),
            tensors=tensors,
            chains=tuple(
                Chain(str(layer), places[source], str(norm)) for layer, norm, source in json.loads(metadata["chains"])
            ),
        )
    except (AttributeError, KeyError, RecursionError, TypeError, UserError, ValueError) as damage:
        raise damaged(path, damage) from None


def require_same_points(wanted: Iterable[QuantPoint], found: Iterable[QuantPoint], path: object) -> None:
    """Refuse a file's quantization that is of another scope."""
    here, there = set(wanted), set(found)
    if here != there:
        first = min(here ^ there, key=lambda point: point.key)
        where = "is quantized there and not here" if first in there else "is not quantized there"
        raise UserError(f"{path} is of other points: {first.key} {where}; use its scope, or calibrate again")


def damaged(path: str | os.PathLike[str], reason: object) -> UserError:
    return UserError(f"{path} is damaged ({printable(str(reason), 200)}); calibrate again")


def _scheme(path: str | os.PathLike[str], text: str) -> Scheme:
    """An unknown quantizer is no damage: whoever made it has to be there."""
    try:
        return Scheme.parse(text)
    except UserError as mistake:
        raise UserError(f"{path} is of a scheme that cannot be served here: {mistake}") from None


def _plain(point: QuantPoint) -> dict[str, Any]:
    """What is not the default."""
    given = {field.name: getattr(point, field.name) for field in fields(point)}
    plain = {field.name: given[field.name] for field in fields(point) if given[field.name] != field.default}
    plain = {_STORED_NAMES.get(name, name): value for name, value in plain.items()}
    return plain | {"side": point.side.value}


def _point(path: str, side: str, ends: Any = None, with_zero: bool = False, **others: Any) -> QuantPoint:
    fixed_range = None if ends is None else (float(ends[0]), float(ends[1]))
    point = QuantPoint(path, Side(side), fixed_range=fixed_range, include_zero=with_zero, **others)
    kinds = {"path": str, "bits": int | None, "include_zero": bool, "parameter": str, "function": str}
    for name, kind in {**kinds, "operand": int, "call": int | None}.items():
        if not isinstance(getattr(point, name), kind):
            raise TypeError(f"a point's {name} is {getattr(point, name)!r}")
    return point


def _calibration(images: int, seed: int, data: str) -> Calibration:
    if not isinstance(images, int) or not isinstance(seed, int) or not isinstance(data, str):
        raise TypeError(f"it was calibrated with {images!r}, {seed!r}, {data!r}")
    return Calibration(images, seed, data)
