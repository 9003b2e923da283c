"""Result rows: every number of a run is one JSON line in ``results.jsonl``, appended and never edited.

Safe for two writers (a file lock) and after a kill (a torn last line is closed off, reported and skipped).
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import logging
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

SCHEMA = 2
_VERSIONED = ("ssql_det", "torch", "torchvision", "numpy", "detectron2")
_TEXTS = (
    *("method", "checkpoint", "checkpoint_hash", "config", "dataset"),
    *("bits", "scope", "engine", "scheme", "placement", "network"),
)
Protocol = Mapping[str, str | int | float | list[str]]
_logger = logging.getLogger(__name__)
# Of schema 1, whose calibration and config were prose: "64 images of toy_voc_2007_trainval, seed 0, MinMax, BN
# recalibrated, backbone.res5.* at 8w8a"; of probes "narrow_resnet; knn, linear; fast: SGD at 30 for a batch of 512, 100
# epochs; digits at 96 px, 800 and 200 images".
_CALIBRATION = re.compile(  # what follows a part ends it: one reading alone, or a hostile text would be tried for ever
    r"(?P<images>\d{1,9}) images(?: of (?P<data>(?:(?!, MinMax).)+?))?(?:, seed (?P<seed>-?\d{1,19}))?, MinMax"
    r"(?P<norms>, BN recalibrated)?(?P<overrides>(?:, (?:(?! at \w+(?:, |\Z)).)+ at \w+)*)"
)
_PROBE = re.compile(
    r"(?P<network>\w+); (?P<probes>knn|linear|knn, linear|linear, knn); "
    r"(?:(?P<linear>\w+): (?P<optimizer>\w+) at (?P<rate>[\d.e+-]+) for a batch of (?P<batch>\d{1,9}), "
    r"(?P<epochs>\d{1,9}) epochs(?:, (?P<cached_views>\d{1,9}) views of each image)?; )?"
    r"(?P<recipe>\w+) at (?P<size>\d{1,9}) px, (?P<train_images>\d{1,9}) and (?P<val_images>\d{1,9}) images"
)
_WHOLE = ("batch", "epochs", "cached_views", "size", "train_images", "val_images")


def package_versions() -> dict[str, str]:
    """Versions of what can change a number; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def timestamp() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Row:
    """One evaluation of one checkpoint at one bit-width.

    >>> append_row(out / "results.jsonl", Row(method="SSQL", checkpoint="ssql.pth", checkpoint_hash="9f3c...",
    ...        config="voc_r18_c4.yaml", dataset="voc_2007_test", bits="4w4a", scope="backbone",
    ...        metrics={"AP50": 61.2}, seed=0, engine="minid2", seconds=92.5, scheme="act=mse", network="resnet18",
    ...        calibration=Calibration(128, 0, "voc_2007_trainval")))

    ``scheme`` and ``overrides`` are as ``--scheme`` and a bits file have them; ``protocol`` says how a probe was made,
    by plain names. Prose is for whoever shows a row.
    """

    method: str
    checkpoint: str
    checkpoint_hash: str
    config: str
    dataset: str
    bits: str
    scope: str
    metrics: Mapping[str, float | None]
    seed: int
    engine: str
    seconds: float
    scheme: str
    calibration: Calibration
    network: str = ""
    protocol: Protocol = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    placement: str = "published"
    versions: Mapping[str, str] = field(default_factory=package_versions)
    time: str = field(default_factory=timestamp)
    schema: int = SCHEMA


def append_row(path: str | os.PathLike[str], row: Row) -> None:
    """Add a row; it is on disk when this returns. A metric that is not finite is stored as null."""
    record = dataclasses.asdict(row)
    record["metrics"] = {name: finite_or_none(value) for name, value in row.metrics.items()}
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, also by a kill
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line  # a writer was killed in mid-line: close its line off, keep ours whole
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
    except OSError as failure:
        raise UserError(f"could not append a row to {path}: {failure.strerror or failure}") from failure


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All whole rows of a file, in order. A line torn by a kill is skipped with a warning."""
    if not Path(path).is_file():
        raise UserError(f"there are no results at {path}; run an evaluation first, or check the path")
    rows, torn = [], []
    for number, line in enumerate(Path(path).read_text("utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            torn.append(number)
            continue
        except (RecursionError, ValueError):  # nested without end, or a number of thousands of digits
            record = None
        rows.append(_to_row(record, f"{path}, line {number}"))
    if torn:
        more = f" and {len(torn) - 1} more are" if len(torn) > 1 else " is"
        _logger.warning("%s, line %d%s torn (a run was killed while it wrote); skipped", path, torn[0], more)
    return rows


def check_results_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file of something else, to which rows would be appended, before anything is measured."""
    if Path(path).is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file in it")
    if Path(path).exists() and os.path.getsize(path) and not read_rows(path):
        raise UserError(f"{path} holds something else than result rows; name another file")


def _to_row(record: Any, where: str) -> Row:
    if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
        raise UserError(f"{where} is not a result row; is this a results.jsonl of ssql_det?")
    if record["schema"] > SCHEMA:
        raise UserError(
            f"{where} has schema {record['schema']}, this version reads up to {SCHEMA}; update ssql_det to read it"
        )
    try:
        record = upgrade_record(record) if record["schema"] == 1 else record
        row = Row(**record)
    except TypeError as mismatch:
        raise UserError(f"{where} does not have a row's fields: {mismatch}") from None
    except ValueError as unknown:
        raise UserError(f"{where} is a row of schema 1 that cannot be read: {unknown}") from None
    wrong = list(_wrong_fields(row))
    if wrong:
        raise UserError(f"{where} is a row whose {', '.join(wrong)} is not what a row holds; was it edited by hand?")
    config = re.sub(r" SSQL\.(?=[A-Z])", " SSQL_DET.", row.config)  # keys' names of today, so that rows join
    return dataclasses.replace(row, config=config, calibration=Calibration(**record["calibration"]))


def _wrong_fields(row: Row) -> Iterator[str]:
    """A file is foreign until each field that is read again has its type."""
    yield from (name for name in _TEXTS if not isinstance(getattr(row, name), str))
    if not isinstance(row.seed, int):
        yield "seed"
    if not isinstance(row.metrics, dict) or not all(map(_is_figure, row.metrics.values())):
        yield "metrics"
    if not isinstance(row.overrides, dict) or not all(isinstance(bits, str) for bits in row.overrides.values()):
        yield "overrides"
    if not isinstance(row.protocol, dict) or not all(map(_is_plain, row.protocol.values())):
        yield "protocol"
    if not _is_calibration(row.calibration):
        yield "calibration"
    try:
        datetime.fromisoformat(row.time)
    except (TypeError, ValueError):
        yield "time"


def _is_figure(value: object) -> bool:
    """A number that is not finite was written as null, so another one is not of this project; nor is 1e300."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300)


def _is_plain(value: object) -> bool:
    """What a protocol may say."""
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, str) or (value is not None and _is_figure(value))


def _is_calibration(value: object) -> bool:
    kinds = {"images": int, "seed": int, "data": str}
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(type(value[name]) is kind for name, kind in kinds.items())
    )


def finite_or_none(value: float | None) -> float | None:
    """JSON has no NaN and no infinity; a value that is none is null."""
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Calibration:
    """So many ``images`` of ``data``, chosen by the ``seed``. Asked for without ``data``: those that there are.

    >>> str(Calibration(64, 0, "toy_voc_2007_trainval"))
    '64 images of toy_voc_2007_trainval, seed 0'
    """

    images: int = 256  # as QDrop's detectors are calibrated with (Wei et al., ICLR 2022)
    seed: int = 0
    data: str = ""

    def __str__(self) -> str:
        data = f" of {self.data}" if self.data else ""
        return f"{self.images} images{data}, seed {self.seed}"


def upgrade_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record in schema 2's fields; a ``ValueError`` for prose that schema 1 did not write."""
    calibration, config = record.get("calibration"), record.get("config")
    if not isinstance(calibration, str) or not isinstance(config, str):
        raise ValueError("its calibration or config is no text")
    said = _CALIBRATION.fullmatch(calibration)
    if said is None:
        raise ValueError(f"its calibration says {calibration[:80]!r}")
    norms = "norms=re-estimated" if said["norms"] else "minmax"
    images = {"images": int(said["images"]), "seed": int(said["seed"] or 0), "data": said["data"] or ""}
    patterns = re.findall(r", (.+?) at (\w+)(?=, |$)", said["overrides"])
    typed = {"calibration": images, "scheme": norms, "overrides": dict(patterns), "schema": 2}
    probe = _PROBE.fullmatch(config)
    if probe is None and re.match(r"\w+; ", config):  # a detector's begins with a file's name
        raise ValueError(f"its config says {config[:80]!r}")
    if probe is not None:
        typed |= {"config": "", "network": probe["network"], "protocol": _protocol(probe)}
    return {**record, **typed}


def _protocol(probe: re.Match[str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: value for name, value in probe.groupdict().items() if value is not None}
    found.pop("network")
    found["probes"] = found["probes"].split(", ")
    if "rate" in found:
        found["rate"] = float(found["rate"])
    return found | {name: int(found[name]) for name in _WHOLE if name in found}
