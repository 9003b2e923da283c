"""Numbers on a command line: every option of every command refuses what no random generator and no machine takes."""

import argparse

import pytest

from ssql_det.cli.main import COMMANDS, make_parser

HUGE = ("1" + "0" * 9, str((1 << 32) - 1), str(1 << 32), "9" * 17, "9" * 19, "9" * 5000)
NO_NUMBERS = ("", "x", "-1", "1.5", "1e9", "nan", "inf", "0x10", "²")
LIMITS = {"workers": 1 << 10, "threads": 1 << 10, "jobs": 1 << 10, "num_gpus": 1 << 10}


def read_number(action, text):
    try:
        return action.type(text)
    except (argparse.ArgumentTypeError, ValueError):  # argparse makes one sentence of both
        return None


def has_count(action):
    """Whether an option takes a count or a seed; what the other numbers may be is checked where they are used."""
    return action.type not in (None, int, float) and read_number(action, "7") == 7


@pytest.mark.parametrize("command", COMMANDS)
def test_counts_and_seeds_are_bounded(command):
    (subparsers,) = [each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction)]
    for action in filter(has_count, subparsers.choices[command]._actions):
        assert {read_number(action, text) for text in NO_NUMBERS} == {None}, action.dest
        numbers = [number for text in HUGE if (number := read_number(action, text)) is not None]
        assert max(numbers, default=0) <= LIMITS.get(action.dest, (1 << 32) - 1), action.dest
