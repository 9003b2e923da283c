"""Folders are floors: an import goes down or stays in its folder, and the ground floor stands on nothing."""

import ast
from pathlib import Path

import pytest

import ssql_det

PACKAGE = Path(ssql_det.__file__).parent
FLOORS = {
    "core": 0,
    "images": 1,
    "quant": 2,
    "backbones": 2,
    "toydata": 2,
    "checkdata": 2,
    "convert": 2,
    "report": 2,
    "minid2": 2,
    "d2": 3,
    "d2_bounds": 2,
    "analyze": 3,
    "detect": 4,
    "deploy": 5,
    "reproduce": 4,
    "ssl": 3,
    "ptq": 3,
    "pretrain": 4,
    "cli": 6,
    "__main__": 7,
}
LONGEST = 350


def modules():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(path):
    """Folders of ssql_det that a module names in an import."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or path.parts[0] == "minid2", f"{path} imports relatively"
            assert node.level < len(path.parts), f"{path} imports from above its own package"
            names = [node.module or ""]
        for name in names:
            if name.startswith("ssql_det."):
                yield name.split(".")[1]


def test_every_folder_has_a_floor():
    assert {path.parts[0].removesuffix(".py") for path in modules()} == {*FLOORS, "__init__"}


@pytest.mark.parametrize("path", [path for path in modules() if path.name != "__init__.py" or path.parts[1:]], ids=str)
def test_imports_go_down(path):
    own = path.parts[0].removesuffix(".py")
    for folder in imported(path):
        assert folder == own or FLOORS[folder] < FLOORS[own], f"{path} imports {folder}"


@pytest.mark.parametrize("path", [path for path in modules() if path.parts[0] == "minid2"], ids=str)
def test_the_stand_in_knows_nothing_of_the_suite(path):
    assert not list(imported(path))


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_file_says_what_it_is_for_and_can_be_read_alone(path):
    text = (PACKAGE / path).read_text("utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"
    assert len(text.splitlines()) <= LONGEST, f"{path} is too long to be read alone"
