"""Files of JSON lines, which are appended to and never edited, such as result rows and measurements.

Two processes may append to one file (it is locked). After a kill a truncated last line is skipped with a warning.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssql_det.core.errors import UserError
from ssql_det.core.files import read_text
from ssql_det.core.json_files import parse_json

_logger = logging.getLogger(__name__)


def append_record(path: str | os.PathLike[str], record: Mapping[str, Any], kind: str) -> None:
    """Append a line and flush it to disk; NaN and infinity are a ``ValueError``. ``kind`` is for error messages.

    >>> append_record("lines.jsonl", {"AP": 41.5}, "a row")
    >>> list(read_records("lines.jsonl", "a row"))
    [(1, {'AP': 41.5})]
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line  # another writer was killed within a line: end that line first
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
    except OSError as failure:
        raise UserError(f"could not append {kind} to {path}: {failure.strerror or failure}") from failure


def read_records(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[int, Any]]:
    """Yield each line's number, from 1, and its content. A truncated line, as a kill leaves it, is skipped with a
    warning; numbers that are not finite are left to the caller."""
    truncated = []
    for number, line in enumerate(read_text(path, errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, allow_nan=True)
        except json.JSONDecodeError:
            truncated.append(number)
            continue
        except ValueError as failure:  # complete, but no run wrote it
            raise UserError(f"{path}, line {number} is not {kind}: {failure}") from None
        yield number, record
    if truncated:
        more = f" and {len(truncated) - 1} more are" if len(truncated) > 1 else " is"
        message = "%s, line %d%s truncated (a run was killed while it wrote); skipped"
        _logger.warning(message, path, truncated[0], more)
