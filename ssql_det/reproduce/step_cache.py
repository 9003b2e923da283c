"""Records which steps are done, and from which inputs: a small file per step, ``OUT/steps/<name>.json``.

A step is cached while its command and the contents of its inputs and outputs are unchanged. A step that was killed
resumes in its folder. A step whose inputs changed starts again in an empty folder; the old content, which may have
taken days, is moved to ``OUT/replaced``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ssql_det.core.config import read_config_file
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write, sha256
from ssql_det.core.json_files import read_json
from ssql_det.reproduce.steps import Step

_CONFIG_SUFFIXES = (".yaml", ".yml")
_RESUMABLE_OPTIONS = {  # a step can resume with other values of these options: its partial results stay valid
    "pretrain": ("--num-gpus",),
    "train": ("--num-gpus",),
    "sweep": ("--bits", "--num-gpus"),
    "probe": ("--bits",),
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepCache:
    """For each step of a run in folder ``out``::

        if not cache.is_cached(step):
            cache.begin(step)
            ...  # run it
            cache.finish(step, seconds=71.0)

    A record has the keys ``asked`` (the request: arguments and hashes of inputs), ``made`` (hashes of
    outputs) and ``seconds``.
    """

    out: Path

    def is_cached(self, step: Step) -> bool:
        record = self._read_record(step)
        # A config path may name a file shipped in the package, which does not exist at that path.
        files = [path for path in step.inputs if path.suffix not in _CONFIG_SUFFIXES]
        if record is None or "made" not in record or not all(path.is_file() for path in files):
            return False
        return record["asked"] == self._make_request(step) and self._are_outputs_unchanged(step, record)

    def begin(self, step: Step) -> None:
        """Record that the step starts; move the content of its folder away unless the step can resume from it."""
        record, request = self._read_record(step), self._make_request(step)
        can_resume = (
            record is not None
            and self._are_outputs_unchanged(step, record)
            and _is_resumable(step, record["asked"], request)
        )
        # make-toy-data replaces old toy data itself, and refuses a folder with other files
        if step.folder.exists() and not can_resume and step.kind != "data":
            if record is None:
                raise UserError(f"{step.folder} exists and was not made by a step; choose another --out")
            self._archive_folder(step)
        self._write_record(step, {"asked": request})

    def finish(self, step: Step, seconds: float) -> None:
        """Record that the step is done, with the hashes of its outputs."""
        missing = [path for path in step.outputs if not path.is_file()]
        if missing:
            raise UserError(f"{step.name} ended without an error but did not make {missing[0]}; please report this bug")
        record = self._read_record(step) or {}  # the request of the start: inputs may have changed since
        self._write_record(step, {**record, "made": self._hash_files(step.outputs), "seconds": round(seconds, 1)})

    def get_seconds(self, step: Step) -> float | None:
        """The duration of the step's last run; for a resumed step, only the time since it resumed."""
        return (self._read_record(step) or {}).get("seconds")

    def _are_outputs_unchanged(self, step: Step, record: dict[str, Any]) -> bool:
        """Whether the outputs have their recorded hashes; true for a step that has not finished."""
        if "made" not in record:
            return True
        return all(path.is_file() for path in step.outputs) and bool(record["made"] == self._hash_files(step.outputs))

    def _archive_folder(self, step: Step) -> None:
        archive = self.out / "replaced" / f"{step.name}.{time.strftime('%Y%m%d-%H%M%S')}"
        archive.parent.mkdir(parents=True, exist_ok=True)
        step.folder.rename(archive)
        _logger.warning(
            "%s: its command or a file changed, so the step starts again; the old files are in %s", step.name, archive
        )

    def _get_record_path(self, step: Step) -> Path:
        return self.out / "steps" / f"{step.name}.json"

    def _read_record(self, step: Step) -> dict[str, Any] | None:
        path = self._get_record_path(step)
        if not path.exists():
            return None
        return dict(read_json(path, f"delete it together with {step.folder}", _is_record))

    def _write_record(self, step: Step, record: dict[str, Any]) -> None:
        with atomic_write(self._get_record_path(step), "w") as file:
            json.dump(record, file, indent=1)

    def _make_request(self, step: Step) -> dict[str, Any]:
        arguments = [self._replace_out(argument) for argument in step.arguments]
        return {"arguments": arguments, "read": self._hash_files(step.inputs)}

    def _hash_files(self, paths: tuple[Path, ...]) -> dict[str, str]:
        return {self._replace_out(str(path)): fingerprint_content(path) for path in paths}

    def _replace_out(self, text: str) -> str:
        """Write paths in ``out`` as ``OUT/...``, so that the folder can be moved."""
        return f"OUT{text[len(str(self.out)) :]}" if f"{text}/".startswith(f"{self.out}/") else text


def _is_record(content: Any) -> bool:
    """Whether this is the content of a record, of a step that has finished or not."""
    match content:
        case {"asked": {"arguments": [*_], "read": {}}}:
            seconds = content.get("seconds", 0)
            return isinstance(content.get("made", {}), dict) and type(seconds) in (int, float) and seconds >= 0
    return False


def _is_resumable(step: Step, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two requests of a step are equal apart from resumable options."""
    options = _RESUMABLE_OPTIONS.get(step.kind, ())
    before, now = ({**each, "arguments": remove_options(each["arguments"], options)} for each in (before, now))
    return before == now


def remove_options(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Arguments without some options and their values.

    >>> remove_options(["sweep", "--bits", "FP,4", "--scope", "all"], ["--bits"])
    ['sweep', '--scope', 'all']
    """
    pairs = pairwise(["", *arguments])
    return [argument for previous, argument in pairs if previous not in options and argument not in options]


def fingerprint_content(path: Path) -> str:
    """SHA-256 of a file; for a config, its resolved values as JSON text.

    So comments in a config do not count, and base configs do.
    """
    if path.suffix not in _CONFIG_SUFFIXES:
        return sha256(path)
    return json.dumps(read_config_file(path), sort_keys=True)
