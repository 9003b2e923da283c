"""A checkpoint format as data: where it keeps the backbone, how it is known, what it does not carry."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Any

from torch import Tensor

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.facts import Facts, Input, customary
from ssql_det.convert.layout import Layout, contained


@dataclass(frozen=True)
class Writer:
    """How a format is written. ``write`` returns what was left behind, by name and reason, or refuses."""

    suffixes: tuple[str, ...]
    write: Callable[[Checkpoint, IO[bytes]], Mapping[str, str]]


@dataclass(frozen=True)
class Found:
    """A format recognized in a file, and ``why``: the key that gave it away."""

    format: Format
    branch: str
    layout: Layout
    container: str
    state: dict[str, Any]
    why: str


@dataclass(frozen=True)
class Part:
    """A tensor of a detector beside its backbone: its name in the file, its name in Detectron2, the tensor as there."""

    source: str
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Format:
    """One format. ``branches`` has the one that is read by default first, each with the layouts it comes in.

    ``left_out`` says why what fits a pattern is not taken, ``outside`` why what is not under the prefix is not.
    ``method`` and ``images`` are what is trained with it by custom; ``facts`` reads what the file itself tells;
    ``rest`` finds, in the file and among the names left over, a detector's other tensors.
    """

    name: str
    title: str
    branches: Mapping[str, tuple[Layout, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    outside: str | None = None
    method: str | None = None
    images: Input | None = None
    facts: Callable[[Any, Found, Architecture], Facts] | None = None
    rest: Callable[[Any, dict[str, Any]], list[Part]] | None = None
    writer: Writer | None = None
    note: str = ""  # what the format does not carry

    def find(self, content: Any, branch: str | None = None) -> Found | None:
        """The branch, by default the first that is there, where this file is of this format."""
        for name in self.branches if branch is None else [branch]:
            for layout in self.branches.get(name, ()):
                for container in layout.containers:
                    state = contained(content, container)
                    if state is not None and layout.is_in(state, content):
                        inside = f" in {container!r}" if container else ""
                        beside = f", beside {' and '.join(layout.marks)}" if layout.marks else ""
                        return Found(self, name, layout, container, state, f"it has {layout.first}{inside}{beside}")
        return None

    def branches_in(self, content: Any) -> tuple[str, ...]:
        return tuple(name for name in self.branches if self.find(content, name) is not None)

    def reason_to_leave(self, name: str, found: Found) -> str | None:
        """Why a name is not taken on purpose: it is of another branch, or the format says so."""
        for branch, layouts in self.branches.items():
            if branch == found.branch or (found.layout.prefix and name.startswith(found.layout.prefix)):
                continue
            if any(each.prefix and name.startswith(each.prefix) for each in layouts):
                return f"of the {branch} branch"
        if self.outside is not None and not name.startswith(found.layout.prefix):
            return self.outside
        return next((why for pattern, why in self.left_out.items() if fnmatch.fnmatchcase(name, pattern)), None)

    def facts_of(self, content: Any, found: Found, architecture: Architecture) -> Facts:
        """What is known about the network beside its tensors: the branch is the one found."""
        if self.facts is None:
            facts = customary(architecture, self.method, self.images)
        else:
            facts = self.facts(content, found, architecture)
        return facts if facts.from_file else replace(facts, branch=found.branch)
