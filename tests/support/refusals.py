"""A user's mistake, as a command answers it."""

import pytest

from ssql_det.cli.main import main


def refused(capsys, *arguments):
    """The one line that a command ends with, and exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line
