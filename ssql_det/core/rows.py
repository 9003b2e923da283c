"""Result rows: one JSON line in ``results.jsonl`` for each evaluation, appended and never edited.

Two processes may append to one file (it is locked). After a kill a truncated last line is skipped with a warning.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ssql_det.core.errors import UserError
from ssql_det.core.files import check_regular_file
from ssql_det.core.json_lines import append_record, read_records

SCHEMA = 2
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
RUNTIMES = (ONNXRUNTIME, OPENVINO)  # the engines of rows of an exported detector
_PACKAGES = ("ssql_det", "torch", "torchvision", "numpy", "detectron2", "onnxruntime", "openvino")
_STRING_FIELDS = (
    *("method", "checkpoint", "checkpoint_hash", "config", "dataset"),
    *("bits", "scope", "engine", "scheme", "placement", "network"),
)
_METRIC_FIELDS = ("metrics", "class_aps")
_LATER_ROLES = ("reconstruction_images", "selection_images")  # of calibrations; rows of earlier versions have neither
Protocol = Mapping[str, str | int | float | list[str]]  # hyperparameters of a probe by name
# In schema 1 the calibration was a text, "64 images of toy_voc_2007_trainval, seed 0, MinMax, BN recalibrated,
# backbone.res5.* at 8w8a", and so was a probe's config, "narrow_resnet; knn, linear; fast: SGD at 30 for a batch of
# 512, 100 epochs; digits at 96 px, 800 and 200 images".
_CALIBRATION_TEXT = re.compile(  # unambiguous, so that no text makes the matching backtrack exponentially
    r"(?P<images>\d{1,9}) images(?: of (?P<data>(?:(?!, MinMax).)+?))?(?:, seed (?P<seed>-?\d{1,19}))?, MinMax"
    r"(?P<norms>, BN recalibrated)?(?P<overrides>(?:, (?:(?! at \w+(?:, |\Z)).)+ at \w+)*)"
)
_PROBE_TEXT = re.compile(
    r"(?P<network>\w+); (?P<probes>knn|linear|knn, linear|linear, knn); "
    r"(?:(?P<linear>\w+): (?P<optimizer>\w+) at (?P<rate>[\d.e+-]+) for a batch of (?P<batch>\d{1,9}), "
    r"(?P<epochs>\d{1,9}) epochs(?:, (?P<cached_views>\d{1,9}) views of each image)?; )?"
    r"(?P<recipe>\w+) at (?P<size>\d{1,9}) px, (?P<train_images>\d{1,9}) and (?P<val_images>\d{1,9}) images"
)
_INTEGER_FIELDS = ("batch", "epochs", "cached_views", "size", "train_images", "val_images")


@functools.cache
def package_versions() -> Mapping[str, str]:
    """The versions of Python and of the packages that can change results; one that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def timestamp() -> str:
    """The current time in ISO 8601 format, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Row:
    """One evaluation of one checkpoint at one bit-width: of a detector, or of a backbone by probes.

    >>> row = Row(method="SSQL", checkpoint="ssql.pth", checkpoint_hash="9f3c", config="voc_r18_c4.yaml", seed=0,
    ...           dataset="voc_2007_test", bits="4w4a", scope="backbone", metrics={"AP50": 61.2}, engine="minid2",
    ...           seconds=92.5, scheme="act=mse", calibration=Calibration(128, 0, "voc_2007_trainval"))
    >>> append_row("results.jsonl", row)
    >>> read_rows("results.jsonl") == [row]
    True
    """

    method: str  # empty if unknown
    checkpoint: str  # a file name, or the iteration of a training
    checkpoint_hash: str  # SHA-256 of the file; empty if there is none
    config: str  # of a detector: its file (path below configs/detection, or name) and overrides; empty for a probe
    dataset: str  # evaluated on
    bits: str  # FP, or for example 4w4a: 4-bit weights and activations
    scope: str  # what is quantized, "all" of a detector or its "backbone"; costs are of the whole network
    metrics: Mapping[str, float | None]  # None for a value that was not finite
    seed: int  # of the training; -1 if unknown or random
    engine: str  # detectron2, minid2, onnxruntime or openvino; empty for a probe
    seconds: float  # that the evaluation took
    scheme: str  # as in --scheme
    calibration: Calibration
    network: str = ""  # architecture of the backbone; empty if unknown
    protocol: Protocol = field(default_factory=dict)  # of a probe: hyperparameters by name
    class_aps: Mapping[str, float | None] = field(default_factory=dict)  # AP of classes by name, such as bbox/person
    overrides: Mapping[str, str] = field(default_factory=dict)  # bit-widths by pattern of module paths
    placement: str = "published"  # of the quantization points, see quant.Scheme
    versions: Mapping[str, str] = field(default_factory=package_versions)
    time: str = field(default_factory=timestamp)
    schema: int = SCHEMA


def append_row(path: str | os.PathLike[str], row: Row) -> None:
    """Append a row and flush it to disk. A metric that is not finite is stored as null."""
    record = dataclasses.asdict(row) | {"calibration": row.calibration.to_dict()}
    for name in _METRIC_FIELDS:
        record[name] = {key: finite_or_none(value) for key, value in getattr(row, name).items()}
    append_record(path, record, "a row")


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All rows of a file, in order. A truncated line, as a kill leaves it, is skipped with a warning."""
    if not Path(path).is_file():
        raise UserError(f"there is no results file {path}; run an evaluation first, or check the path")
    return [_to_row(record, f"{path}, line {number}") for number, record in read_records(path, "a result row")]


def check_results_file(path: str | os.PathLike[str]) -> None:
    """Refuse a path to which rows cannot be appended, before the evaluation starts."""
    if Path(path).is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file in it")
    check_regular_file(path)
    if Path(path).exists() and os.path.getsize(path) and not read_rows(path):
        raise UserError(f"{path} is not a results file; name another file")


def _to_row(record: Any, where: str) -> Row:
    if not isinstance(record, dict) or type(record.get("schema")) is not int or record["schema"] < 1:
        raise UserError(f"{where} is not a result row; is this a results.jsonl of ssql_det?")
    if record["schema"] > SCHEMA:
        raise UserError(
            f"{where} has schema {record['schema']}, but this version reads up to {SCHEMA}; update ssql_det"
        )
    try:
        record = upgrade_record(record) if record["schema"] == 1 else record
        row = Row(**record)
    except TypeError as mismatch:
        raise UserError(f"{where} does not have the fields of a result row: {mismatch}") from None
    except ValueError as unreadable:
        raise UserError(f"{where} has schema 1 and cannot be converted: {unreadable}") from None
    invalid = list(_find_invalid_fields(row))
    if invalid:
        raise UserError(f"{where} is a result row with an invalid {', '.join(invalid)}; was it edited by hand?")
    config = re.sub(
        r" SSQL\.(?=[A-Z])", " SSQL_DET.", row.config
    )  # today's key names, so that older rows compare equal
    return dataclasses.replace(row, config=config, calibration=Calibration(**record["calibration"]))


def _find_invalid_fields(row: Row) -> Iterator[str]:
    """The names of the fields whose value has a wrong type."""
    yield from (name for name in _STRING_FIELDS if not isinstance(getattr(row, name), str))
    if type(row.seed) is not int:
        yield "seed"
    if row.seconds is None or not _is_metric(row.seconds) or row.seconds < 0:
        yield "seconds"
    for name in _METRIC_FIELDS:
        metrics = getattr(row, name)
        if not isinstance(metrics, dict) or not all(map(_is_metric, metrics.values())):
            yield name
    for name in ("overrides", "versions"):
        texts = getattr(row, name)
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            yield name
    if not isinstance(row.protocol, dict) or not all(map(_is_protocol_value, row.protocol.values())):
        yield "protocol"
    if not _is_calibration(row.calibration):
        yield "calibration"
    try:
        datetime.fromisoformat(row.time)
    except (TypeError, ValueError):
        yield "time"


def _is_metric(value: object) -> bool:
    """Null or a number of reasonable size: rows are written with null for a number that is not finite."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300)


def _is_protocol_value(value: object) -> bool:
    """A string, a number or a list of strings."""
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, str) or (value is not None and _is_metric(value))


def _is_calibration(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    types = {"images": int, "seed": int, "data": str} | {name: int for name in _LATER_ROLES if name in value}
    return {name: type(each) for name, each in value.items()} == types


def format_metric(value: float | None, decimals: int = 2) -> str:
    """A metric as every table says it: of AP, ``no value`` means that there is no object to find.

    >>> format_metric(61.234), format_metric(0.0), format_metric(None)
    ('61.23', '0.00', 'no value')
    """
    finite = finite_or_none(value)
    return "no value" if finite is None else f"{finite:.{decimals}f}"


def finite_or_none(value: float | None) -> float | None:
    """The value, or ``None`` for NaN and infinity, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Calibration:
    """The calibration images: their number, the seed that selects them, and their data set (empty until
    the images are loaded). Repairs of a quantized network take more images of that data set, other ones for each role.

    >>> str(Calibration(64, 0, "toy_voc_2007_trainval"))
    '64 images of toy_voc_2007_trainval, seed 0'
    >>> str(Calibration(64, 0, "toy_voc_2007_trainval", reconstruction_images=128, selection_images=32))
    '64 images of toy_voc_2007_trainval, seed 0, 128 more for reconstruction, 32 more for selection'
    """

    images: int = 256  # for ranges and norms; as for QDrop's detectors (Wei et al., ICLR 2022)
    seed: int = 0
    data: str = ""
    reconstruction_images: int = 0  # on which repairs are trained
    selection_images: int = 0  # on which repairs are compared

    def __str__(self) -> str:
        data = f" of {self.data}" if self.data else ""
        roles = {"reconstruction": self.reconstruction_images, "selection": self.selection_images}
        more = "".join(f", {count} more for {role}" for role, count in roles.items() if count)
        return f"{self.images} images{data}, seed {self.seed}{more}"

    def to_dict(self) -> dict[str, int | str]:
        """The fields as files have them: a role without images is left out, as in files of earlier versions.

        >>> Calibration(64, 0, "voc", selection_images=32).to_dict()
        {'images': 64, 'seed': 0, 'data': 'voc', 'selection_images': 32}
        """
        return {name: value for name, value in vars(self).items() if value or name not in _LATER_ROLES}


def upgrade_record(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of schema 1 to schema 2; a ``ValueError`` if it is not one."""
    calibration, config = record.get("calibration"), record.get("config")
    if not isinstance(calibration, str) or not isinstance(config, str):
        raise ValueError("its calibration or config is not a string")
    parsed = _CALIBRATION_TEXT.fullmatch(calibration)
    if parsed is None:
        raise ValueError(f"its calibration is {calibration[:80]!r}")
    scheme = "norms=re-estimated" if parsed["norms"] else "minmax"
    images = {"images": int(parsed["images"]), "seed": int(parsed["seed"] or 0), "data": parsed["data"] or ""}
    overrides = re.findall(r", (.+?) at (\w+)(?=, |$)", parsed["overrides"])
    upgraded = {"calibration": images, "scheme": scheme, "overrides": dict(overrides), "schema": 2}
    probe = _PROBE_TEXT.fullmatch(config)
    if probe is None and re.match(r"\w+; ", config):  # not a detector's, which begins with a file name
        raise ValueError(f"its config is {config[:80]!r}")
    if probe is not None:
        upgraded |= {"config": "", "network": probe["network"], "protocol": _parse_protocol(probe)}
    return {**record, **upgraded}


def _parse_protocol(probe: re.Match[str]) -> dict[str, Any]:
    protocol: dict[str, Any] = {name: value for name, value in probe.groupdict().items() if value is not None}
    protocol.pop("network")
    protocol["probes"] = protocol["probes"].split(", ")
    if "rate" in protocol:
        protocol["rate"] = float(protocol["rate"])
    return protocol | {name: int(protocol[name]) for name in _INTEGER_FIELDS if name in protocol}
