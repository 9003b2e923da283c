"""Functions in a process of its own, which are called from here one at a time: to measure their time and memory.

The process is a new interpreter, which has imported nothing but what it needs. It ends with the one that started it.
This file imports nothing of ``ssql_det``, so that a benchmark can load it alone, into an environment without it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

_ANSWER = "answer of a function:"  # in the lines that the process writes; libraries may write others there


class FunctionProcess:
    """A process that runs ``command``, which ends with a call of :func:`serve`.

    >>> code = "import math; from ssql_det.core.function_process import serve; serve({'pi': lambda: math.pi})"
    >>> with FunctionProcess([sys.executable, "-c", code]) as process:  # doctest: +SKIP
    ...     process.run("pi")
    3.141592653589793
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it is ready; ``environment`` has more variables for it."""
        pipe = subprocess.PIPE
        self.process: Any = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=pipe,
            stdout=pipe,
            text=True,
            bufsize=1,
            start_new_session=True,  # Ctrl-C ends this process, and by that the other one
        )
        self.ready = self._read_answer()

    def run(self, name: str) -> Any:
        """Run a function there, and return what it returns."""
        self.process.stdin.write(f"{name}\n")
        return self._read_answer()

    def _read_answer(self) -> Any:
        for line in self.process.stdout:
            _, is_answer, text = line.partition(_ANSWER)
            if is_answer:
                return json.loads(text)
        self.process.wait()
        self.report_end()

    def report_end(self) -> NoReturn:
        """Raise an exception about a process that has ended without an answer; it has written the reason itself."""
        raise RuntimeError(f"a process ended with exit code {self.process.returncode}: {' '.join(self.process.args)}")

    def close(self) -> None:
        """Let it end, and wait for that."""
        self.process.communicate()

    def __enter__(self) -> FunctionProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if raised is not None:
            self.process.kill()
        self.close()


def serve(functions: Mapping[str, Callable[[], object]], ready: object = None) -> NoReturn:
    """In the process: run the functions that are asked for. What they return, and ``ready``, must fit in JSON."""
    name = answer(ready)
    while True:
        name = answer(functions[name]())


def answer(value: object) -> str:
    """In the process: give an answer, at first that it is ready, and wait for the name of the next function."""
    print(_ANSWER, json.dumps(value), flush=True)
    name = sys.stdin.readline().rstrip("\n")
    if not name:  # the other process has closed the pipe, or has ended
        raise SystemExit
    return name


def read_memory(kind: str, process: int | str = "self") -> int:
    """Memory of a process in bytes, on Linux: now (``VmRSS``; ``RssAnon`` without mapped files) or peak (``VmHWM``)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def read_peak_memory() -> int:
    """The peak memory of this process in bytes, imports included.

    >>> read_peak_memory() > 1_000_000
    True
    """
    if sys.platform == "linux":  # what getrusage gives there includes the process that started this one
        return read_memory("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
