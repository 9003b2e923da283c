"""What is done already, and from which inputs: one small file a step, ``OUT/steps/<name>.json``.

A step is done while its command, the content of what it reads and the content of what it made are those of then. One
that was killed goes on in its folder; one whose inputs have changed empties its folder and begins anew.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssql_det import __version__
from ssql_det.core.config import read_config_file
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write, sha256
from ssql_det.reproduce.step import Step

_CONFIGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Ledger:
    """
    >>> ledger = Ledger(Path("runs/mini"))
    >>> if not ledger.is_done(step):
    ...     ledger.begin(step)
    ...     ...
    ...     ledger.finish(step, seconds=71.0)
    """

    out: Path

    def is_done(self, step: Step) -> bool:
        entry = self._entry(step)
        if entry is None or "made" not in entry or not all(path.is_file() for path in (*step.reads, *step.makes)):
            return False
        return bool(entry["asked"] == self._asked(step) and entry["made"] == self._hashes(step.makes))

    def begin(self, step: Step) -> None:
        """Note what is about to be done; what another command left in the step's folder goes."""
        entry, asked = self._entry(step), self._asked(step)
        is_resumed = entry is not None and entry["asked"] == asked and "made" not in entry
        if step.folder.exists() and not is_resumed:
            if entry is None and step.kind != "data":  # toy data know themselves what is theirs
                raise UserError(f"{step.folder} is there and no step has made it; choose another --out")
            if step.kind != "data":
                shutil.rmtree(step.folder)
        if not is_resumed:
            self._write(step, {"asked": asked})

    def finish(self, step: Step, seconds: float) -> None:
        """All that it had to make is there."""
        missing = [path for path in step.makes if not path.is_file()]
        if missing:
            raise UserError(f"{step.name} ended well and did not make {missing[0]}; please report it")
        self._write(step, {"asked": self._asked(step), "made": self._hashes(step.makes), "seconds": round(seconds, 1)})

    def seconds(self, step: Step) -> float | None:
        """How long it took when it was done; of one that was killed before, only what came after."""
        entry = self._entry(step)
        return None if entry is None else entry.get("seconds")

    def _path(self, step: Step) -> Path:
        return self.out / "steps" / f"{step.name}.json"

    def _entry(self, step: Step) -> dict[str, Any] | None:
        path = self._path(step)
        if not path.exists():
            return None
        try:
            entry = json.loads(path.read_text("utf-8"))
            return {"asked": entry["asked"], **entry}
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path} is damaged; delete it together with {step.folder}") from None

    def _write(self, step: Step, entry: dict[str, Any]) -> None:
        with atomic_write(self._path(step), "w") as file:
            json.dump(entry, file, indent=1)

    def _asked(self, step: Step) -> dict[str, Any]:
        """A folder that was moved is the same folder: paths in it are told from ``OUT``."""
        arguments = [self._told(argument) for argument in step.arguments]
        return {"version": __version__, "arguments": arguments, "read": self._hashes(step.reads)}

    def _hashes(self, paths: tuple[Path, ...]) -> dict[str, str]:
        return {self._told(str(path)): content_hash(path) for path in paths}

    def _told(self, text: str) -> str:
        return f"OUT{text[len(str(self.out)) :]}" if f"{text}/".startswith(f"{self.out}/") else text


def content_hash(path: Path) -> str:
    """Of a config what it says, its bases included; of any other file its bytes."""
    if path.suffix not in _CONFIGS:
        return sha256(path)
    return json.dumps(read_config_file(path), sort_keys=True)
