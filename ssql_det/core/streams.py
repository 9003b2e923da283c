"""Standard streams whose writes never raise, so that a command does its work whatever they are connected to.

A stream may be closed, a pipe whose reader has ended, a terminal that is gone, or a file on a full disk, and its
encoding may lack a character. What cannot be written is lost; the first failure on stdout is reported when the command
ends.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _LenientFile(io.FileIO):
    failure: OSError | None = None  # the first one

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as failure:
            self.failure = self.failure or failure
            return memoryview(data).nbytes


class LenientStream(io.TextIOWrapper):
    """Text to a file descriptor, buffered as ``like``; a character that the encoding lacks is written as ``\\xe9``."""

    def __init__(self, descriptor: int, like: io.TextIOWrapper | None) -> None:
        self.file = _LenientFile(descriptor, "w", closefd=False)
        is_buffered = like is None or not like.write_through
        super().__init__(
            io.BufferedWriter(self.file) if is_buffered else self.file,  # as Python itself
            encoding="utf-8" if like is None else like.encoding,
            errors="backslashreplace",
            line_buffering=like is not None and like.line_buffering,
            write_through=not is_buffered,
        )


def make_streams_lenient() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr``, once, unless the caller has replaced them already."""
    _fill_descriptors()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and (stream is None or isinstance(stream, io.TextIOWrapper)):
            if stream is not None:
                with suppress(OSError):
                    stream.flush()
            setattr(sys, name, LenientStream(descriptor, stream))


def flush_stdout() -> OSError | None:
    """Write what is buffered; return the first failure of any write to stdout."""
    sys.stdout.flush()
    return sys.stdout.file.failure if isinstance(sys.stdout, LenientStream) else None


def _fill_descriptors() -> None:
    """Open the null device for closed streams. Otherwise the next opened file would get the number of one, and the
    output of libraries and of child processes would be written into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
