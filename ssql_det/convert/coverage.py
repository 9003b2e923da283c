"""What became of every tensor: of a file that is read, or of a network that is loaded. Nothing goes in silence."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ssql_det.core.errors import UserError, printable

_SHOWN, _LONGEST = 3, 200  # names in a sentence, characters of each


@dataclass(frozen=True)
class Coverage:
    """Names in the file, or in the network, by what became of them; ``left_out`` says why of each."""

    used: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    wrong: Mapping[str, str] = field(default_factory=dict)  # a name, and what is wrong with its tensor
    beside: tuple[str, ...] = ()  # what else the file has, such as an optimizer or another branch

    @property
    def percent(self) -> float:
        """How much of the backbone found its place, of 100."""
        wanted = len(self.used) + len(self.missing) + len(self.wrong)
        return 100 * len(self.used) / wanted if wanted else 0.0

    def check(self, what: str, allow: Sequence[str] = ()) -> None:
        """Refuse unless all is in its place. What is unmatched may be allowed, by patterns such as ``neck.*``."""
        if self.wrong:
            faults = [f"{name} {fault}" for name, fault in self.wrong.items()]
            raise UserError(f"{what}: {some(faults)}; is it the right file, whole, and the right architecture?")
        if self.missing:
            raise UserError(
                f"{what}: {len(self.missing)} tensor(s) are missing: {some(self.missing)}; get the whole file"
            )
        unmatched = [name for name in self.unmatched if not any(fnmatch.fnmatch(name, each) for each in allow)]
        if unmatched:
            raise UserError(
                f"{what}: {len(unmatched)} tensor(s) have no place: {some(unmatched)}; "
                f"if that is right, say --allow-unmatched '{_pattern(unmatched)}'"
            )

    def to_plain(self) -> dict[str, Any]:
        """For a JSON file beside a run."""
        return {"percent": self.percent, **asdict(self)}


def some(names: Sequence[str]) -> str:
    """
    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name, _LONGEST) for name in names[:_SHOWN]) + more


def _pattern(names: Sequence[str]) -> str:
    """The narrowest simple pattern that one could mean: a common beginning, else a name."""
    common = os.path.commonprefix(list(names)).rpartition(".")[0]  # noqa: RUF071 (letter by letter is meant)
    return printable(f"{common}.*" if common and len(names) > 1 else names[0], _LONGEST)
