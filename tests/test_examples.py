"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest
from support.examples import namespace

import ssql_det

NOT_IMPORTED = ("ssql_det.__main__",)  # a program: to import it is to run it
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples():
    for module in pkgutil.walk_packages(ssql_det.__path__, "ssql_det."):
        if module.name not in NOT_IMPORTED:
            for test in doctest.DocTestFinder().find(importlib.import_module(module.name)):
                if test.examples:
                    yield test


@pytest.mark.usefixtures("registries_as_they_were")
@pytest.mark.parametrize("example", list(examples()), ids=lambda test: test.name)
def test_an_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example.globs = namespace() | example.globs
    report = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    failed, tried = runner.run(example, out=report.append)
    assert tried
    assert not failed, "".join(report)
