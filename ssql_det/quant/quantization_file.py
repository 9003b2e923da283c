"""The file of a ``Quantization``: safetensors, with a header in JSON.

::

    __metadata__  format   "ssql_det quantization"      version      "3"
                  scheme   "act=mse"                    calibration  {"images": 256, "seed": 0, "data": "..."}
                                                           and "reconstruction_images", "selection_images" if not 0
                  points   [{"path": "conv1", "side": "weight", "bits": 8}, ...]
                  model    {"digest": "9f3c...", "tensors": {"conv1.weight": [64, 3, 7, 7], ...}}
                  chains   [["conv1", "bn1", "conv1:input", "relu", "act1:output"], ...], with placement integer only:
                           layer, norm or "", point of the layer's input, activation or "", point of the result or null
                  repairs  {"4w4a": ["norms"], ...}: the repairs that were made at each bit-width
                  sha256   of all the rest, so that an edited file is noticed; files of earlier versions have none
    layer1.0.conv2:input/ends       the least and the greatest value observed at a point
    layer1.0.conv2:input/sums       the counts of the observer's histogram, or its other sums
    layer1.0.conv2:input/learned.x  a parameter or buffer of the point's quantizer
    layer1.0.conv2:input/equalization   the factors by which channels are divided before they are quantized
    4w4a/replaced.bn1.running_mean              a tensor that replaces the network's at a bit-width
    4w4a/learned.layer1.0.conv2:weight/scale    a parameter or buffer of a quantizer that was learned for a bit-width
    norms.4w/bn1.running_mean       a tensor of the norms of a bit-width of weights, with norms=switchable

In version 1 the only repairs were re-estimated norms: ``4w4a/norms.bn1.running_mean``. Up to version 2 chains had no
activation and no point of the result.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import atomic_write
from ssql_det.core.json_files import parse_json
from ssql_det.core.rows import Calibration
from ssql_det.core.tensor_files import is_safetensors, read_safetensors, write_safetensors
from ssql_det.quant.equalization import Equalization
from ssql_det.quant.forward import get_device
from ssql_det.quant.points import QuantPoint, Side
from ssql_det.quant.quantizers import Quantizer
from ssql_det.quant.repair import Repair
from ssql_det.quant.scheme import NORM_CORRECTION, SWITCHABLE, YES, Scheme
from ssql_det.quant.switchable_norms import SwitchableNorms
from ssql_det.quant.tracing import Chain

FORMAT, VERSION = "ssql_det quantization", 3
_LEARNED, _EQUALIZATION = "learned.", "equalization"  # in POINT/learned.NAME and POINT/equalization
_FORMER_NORMS = "/norms."  # in the names of the tensors of version 1
_STORED_NAMES = {"fixed_range": "ends", "include_zero": "with_zero"}  # fields of a point that a file names otherwise


@dataclass(frozen=True)
class ModelSignature:
    """Identifies a model with its weights: the shapes of all parameters and buffers, and a digest of their values."""

    digest: str
    tensors: Mapping[str, list[int]]

    def check_same(self, saved: ModelSignature, path: object) -> None:
        """Raise an error if the file at ``path`` was saved for another network or other weights."""
        for name in [*self.tensors, *saved.tensors]:
            shape, saved_shape = self.tensors.get(name, "missing"), saved.tensors.get(name, "missing")
            if shape != saved_shape:
                tensor = printable(name, 80)
                raise UserError(
                    f"{path} was calibrated on another model: {tensor} is {saved_shape} in the file and {shape} in "
                    "this model; calibrate this model"
                )
        if self.digest != saved.digest:
            raise UserError(f"{path} was calibrated on other weights of this model; calibrate again with these")


@dataclass(frozen=True)
class QuantizationContent:
    """The content of a quantization file; the names of ``tensors`` are listed at the top of this module."""

    scheme: Scheme
    points: tuple[QuantPoint, ...]
    calibration: Calibration | None
    signature: ModelSignature
    tensors: Mapping[str, Tensor]
    chains: tuple[Chain, ...] = ()
    repairs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # those that were made, by bit-width


def compute_signature(model: nn.Module) -> ModelSignature:
    digest = hashlib.sha256()
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = list(tensor.shape)
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return ModelSignature(digest.hexdigest(), tensors)


def write_quantization(path: str | os.PathLike[str], content: QuantizationContent) -> None:
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "scheme": str(content.scheme),
        "calibration": json.dumps(content.calibration.to_dict() if content.calibration else None),
        "points": json.dumps([_point_to_dict(point) for point in content.points]),
        "model": json.dumps(asdict(content.signature)),
        "chains": json.dumps([_chain_to_list(chain) for chain in content.chains]),
        "repairs": json.dumps(content.repairs),
    }
    metadata["sha256"] = _hash_content(content.tensors, metadata)
    with atomic_write(path) as file:
        write_safetensors(content.tensors, metadata, file)


def read_quantization(path: str | os.PathLike[str]) -> QuantizationContent:
    """Read a file and check the type of each part. The caller checks that the content fits a model."""
    if not Path(path).exists():
        raise UserError(f"cannot read a quantization from {path}: there is no such file")
    if not Path(path).is_file() or not is_safetensors(path):
        raise UserError(f"{path} does not hold a quantization; name a file that a sweep or Quantization.save wrote")
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} does not hold a quantization; name a file that a sweep or Quantization.save wrote")
    version = metadata.get("version", "")
    if not version.isdecimal() or len(version) > 4 or int(version) > VERSION:
        quoted = printable(version, 20)
        raise UserError(f"{path} has version {quoted}, this ssql_det reads up to {VERSION}; update ssql_det")
    scheme = _parse_scheme(path, metadata.get("scheme", ""))
    try:
        calibration = parse_json(metadata["calibration"])
        model = parse_json(metadata["model"])
        points = tuple(_build_point(**each) for each in parse_json(metadata["points"]))
        points_by_key = {point.key: point for point in points}
        if len(points_by_key) < len(points):
            raise ValueError("a point is there twice")
        content = QuantizationContent(
            scheme=scheme,
            points=points,
            calibration=None if calibration is None else _build_calibration(**calibration),
            signature=ModelSignature(str(model["digest"]), dict(model["tensors"])),
            tensors=tensors,
            chains=tuple(_build_chain(points_by_key, *each) for each in parse_json(metadata["chains"])),
            repairs=_read_repairs(metadata, tensors),
        )
    except (AttributeError, KeyError, TypeError, UserError, ValueError) as error:
        raise damaged_file_error(path, error) from None
    if metadata.pop("sha256", None) not in (None, _hash_content(tensors, metadata)):
        raise damaged_file_error(path, "its content is not the one that was saved")
    return content


def _chain_to_list(chain: Chain) -> list[str | None]:
    input_key, output_key = (None if each is None else each.key for each in (chain.input_point, chain.output_point))
    return [chain.layer, chain.norm, input_key, chain.activation, output_key]


def _build_chain(
    points: Mapping[str, QuantPoint],
    layer: str,
    norm: str,
    input_key: str,
    activation: str = "",
    output_key: str | None = None,
) -> Chain:
    output_point = None if output_key is None else points[output_key]
    return Chain(str(layer), points[input_key], str(norm), str(activation), output_point)


def collect_tensors(
    quantizers: Mapping[QuantPoint, Quantizer],
    equalization: Equalization,
    repairs: Mapping[str, Repair],
    switchable_norms: SwitchableNorms | None = None,
) -> dict[str, Tensor]:
    """The tensors of a file; ``repairs`` are by the text of their bit-width."""
    tensors = {f"{point.key}/{_EQUALIZATION}": factors for point, factors in equalization.factors.items()}
    tensors |= collect_quantizers(quantizers)
    for label, repair in repairs.items():
        tensors |= {f"{label}/{name}": tensor for name, tensor in repair.collect_state().items()}
    return tensors if switchable_norms is None else tensors | switchable_norms.collect_state()


def collect_quantizers(quantizers: Mapping[QuantPoint, Quantizer]) -> dict[str, Tensor]:
    """The tensors of quantizers, with what their observers hold."""
    tensors = {}
    for point, quantizer in quantizers.items():
        for name, tensor in quantizer.state_dict().items():
            tensors[f"{point.key}/{_LEARNED}{name}"] = tensor
        if quantizer.observer is not None and quantizer.observer.min_val is not None:
            tensors[f"{point.key}/ends"] = torch.stack(quantizer.observer.range)
            if quantizer.observer.sums is not None:
                tensors[f"{point.key}/sums"] = quantizer.observer.sums
    return tensors


def restore_quantizers(tensors: dict[str, Tensor], quantizers: Mapping[QuantPoint, Quantizer]) -> None:
    """Load what :func:`collect_quantizers` returned, and take it out of ``tensors``; a ``ValueError`` for unexpected,
    missing or invalid ones."""
    for point, quantizer in quantizers.items():
        state = _pop(tensors, f"{point.key}/")
        if quantizer.observer is not None and "ends" in state:
            quantizer.observer.restore(state.pop("ends"), state.pop("sums", None))
        learned = {name: tensor for name, tensor in state.items() if name.startswith(_LEARNED)}
        quantizer.load_state_dict({name.removeprefix(_LEARNED): tensor for name, tensor in learned.items()})
        if len(learned) != len(state):
            raise ValueError(f"unexpected tensors at {point.key}")


def restore_tensors(
    content: QuantizationContent, model: nn.Module, quantizers: Mapping[QuantPoint, Quantizer]
) -> tuple[Equalization, dict[str, Repair], SwitchableNorms | None]:
    """Load the tensors of a file into new quantizers of a model, and return the equalization, the repairs and the
    switchable norms; a ``ValueError`` for unexpected, missing or invalid tensors."""
    device = get_device(model)
    tensors = {name: tensor.to(device, copy=True) for name, tensor in content.tensors.items()}  # not memory-mapped
    keys = {point: f"{point.key}/{_EQUALIZATION}" for point in quantizers if content.scheme.equalize == YES}
    factors = {point: tensors.pop(key) for point, key in keys.items() if key in tensors}
    restore_quantizers(tensors, quantizers)
    equalization = Equalization(factors)
    equalization.check(quantizer.spec for quantizer in quantizers.values())
    repairs = {}
    for label, made in content.repairs.items():
        repairs[label] = Repair.restore(_pop(tensors, f"{label}/"), model, quantizers)
        repairs[label].made = made
    norms = None if content.scheme.norms != SWITCHABLE else SwitchableNorms.restore(tensors, model)
    if norms is None and tensors:
        raise ValueError(f"unexpected tensor {min(tensors)}")
    return equalization, repairs, norms


def _pop(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take out the tensors whose names begin with ``prefix``, and return them without it."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}


def check_same_points(expected: Iterable[QuantPoint], saved: Iterable[QuantPoint], path: object) -> None:
    """Raise an error if the points in a file differ, as with another scope (the parts of a detector to quantize)."""
    differing = set(expected) ^ set(saved)
    if differing:
        first = min(differing, key=lambda point: point.key)
        difference = "quantized in the file only" if first not in set(expected) else "not quantized in the file"
        raise UserError(
            f"{path} has other points: {first.key} is {difference}; use the scope of the file, or calibrate again"
        )


def check_given_calibration(
    path: object, saved: Calibration | None, images: int | None = None, seed: int | None = None
) -> Calibration:
    """Return the calibration of a file; raise an error if it has none, or if what a user gave too contradicts it."""
    if saved is None:
        raise UserError(
            f"{path} does not say which images it was calibrated on; set the calibration of a Quantization before "
            "saving it"
        )
    for option, given, own in (("--calib-images", images, saved.images), ("--calib-seed", seed, saved.seed)):
        if given not in (None, own):
            raise UserError(f"{option} is {given}, but {path} was calibrated with {own}; leave the option out")
    return saved


def damaged_file_error(path: str | os.PathLike[str], reason: object) -> UserError:
    return UserError(f"{path} is damaged ({printable(str(reason), 200)}); calibrate again")


def _hash_content(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _parse_scheme(path: str | os.PathLike[str], text: str) -> Scheme:
    """Parse the scheme of a file. An unknown quantizer does not mean a damaged file: it may need a plugin."""
    try:
        return Scheme.parse(text)
    except UserError as error:
        raise UserError(f"{path} has an unsupported scheme: {printable(str(error), 200)}") from None


def _read_repairs(metadata: Mapping[str, str], tensors: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    if "repairs" not in metadata:  # of version 1
        former = (name.partition(_FORMER_NORMS) for name in tensors)
        return {label: (NORM_CORRECTION,) for label, separator, _ in former if separator}
    return {str(label): tuple(map(str, made)) for label, made in parse_json(metadata["repairs"]).items()}


def _point_to_dict(point: QuantPoint) -> dict[str, Any]:
    """The fields of a point that differ from their defaults, under their names in the file."""
    values = {field.name: getattr(point, field.name) for field in fields(point)}
    changed = {field.name: values[field.name] for field in fields(point) if values[field.name] != field.default}
    stored = {_STORED_NAMES.get(name, name): value for name, value in changed.items()}
    return stored | {"side": point.side.value}


def _build_point(path: str, side: str, ends: Any = None, with_zero: Any = False, **others: Any) -> QuantPoint:
    fixed_range = None if ends is None else (float(ends[0]), float(ends[1]))
    point = QuantPoint(path, Side(side), fixed_range=fixed_range, include_zero=with_zero, **others)
    types = {"path": str, "bits": int | None, "include_zero": bool, "parameter": str, "function": str}
    for name, expected in {**types, "operand": int, "call": int | None}.items():
        if not isinstance(getattr(point, name), expected):
            raise TypeError(f"a point has the invalid {name} {getattr(point, name)!r}")
    return point


def _build_calibration(images: int, seed: int, data: str, **images_of_roles: int) -> Calibration:
    numbers = (images, seed, *images_of_roles.values())
    if any(type(number) is not int or number < 0 for number in numbers) or not isinstance(data, str):
        raise TypeError(f"invalid calibration: images {images!r}, seed {seed!r}, data {data!r}, {images_of_roles!r}")
    return Calibration(images, seed, data, **images_of_roles)
