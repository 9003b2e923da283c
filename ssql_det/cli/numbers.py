"""Numbers on the command line, checked where they are read."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    return _whole(text, least=1, kind="1 or more")


def seed(text: str) -> int:
    """A whole number that every generator takes as a seed."""
    return _whole(text, least=0, kind="0 or more")


def _whole(text: str, least: int, kind: str) -> int:
    if not (text.isdecimal() and len(text) <= 18 and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {kind}")
    return int(text)
