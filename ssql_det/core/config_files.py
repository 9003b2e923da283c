"""The configs that come with the package, found by path or by name, in a clone and in an installed package alike."""

from __future__ import annotations

import functools
import os
from pathlib import Path, PurePosixPath

import ssql_det
from ssql_det.core.errors import UserError, did_you_mean

_SUFFIX = ".yaml"
_FRAGMENT_FOLDERS = {"base", "switches"}  # parts of configs, which no command takes alone


def find_config(name: str | os.PathLike[str]) -> Path:
    """The file of this path; where there is none, the package's config of this path or name.

    >>> find_config("mini") == find_config("pretrain/mini") == find_config("configs/pretrain/mini.yaml")
    True
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    matches = _find_by_name(os.fspath(name))
    if len(matches) > 1:
        raise UserError(f"several configs are called {os.fspath(name)}: {', '.join(matches)}; name one of these")
    if matches:
        return config_folder() / f"{matches[0]}{_SUFFIX}"
    if path.exists():  # a folder, which readers refuse
        return path
    # Short names, such as those of Table 8's rows, are similar to any other short name.
    known = {name for each in list_configs() for name in (each, PurePosixPath(each).name) if len(name) > 2}
    similar = "" if path.is_absolute() else did_you_mean(_shorten(os.fspath(name)), known)
    hint = similar or "; check the path"
    raise UserError(f"there is no config file {os.fspath(name)}{hint} (`ssql-det configs` lists the package's)")


def prefer_folder(name: str, folder: str) -> str:
    """The name, with its folder if several folders have a config of this name and ``folder`` is one of them.

    >>> prefer_folder("own_cpu", "pretrain"), prefer_folder("mini", "pretrain")
    ('pretrain/own_cpu', 'mini')
    """
    matches = [] if Path(os.path.expanduser(name)).is_file() else _find_by_name(name)
    inside = [each for each in matches if each.startswith(f"{folder}/")]
    return inside[0] if len(matches) > 1 and len(inside) == 1 else name


@functools.cache
def config_folder() -> Path:
    """``ssql_det/configs`` of an installed package, ``configs`` of a clone."""
    package = Path(ssql_det.__file__).parent
    return next((each for each in (package / "configs", package.parent / "configs") if each.is_dir()), package)


@functools.cache
def list_configs() -> tuple[str, ...]:
    """The name of each config that a command takes, such as ``pretrain/mini``."""
    return tuple(name for name in _list_files() if _FRAGMENT_FOLDERS.isdisjoint(name.split("/")))


def describe_config(name: str) -> str:
    """The first comment line of a config of the package."""
    lines = (config_folder() / f"{name}{_SUFFIX}").read_text("utf-8").splitlines()
    return lines[0].removeprefix("#").strip() if lines and lines[0].startswith("#") else ""


@functools.cache
def _list_files() -> tuple[str, ...]:
    folder = config_folder()
    files = sorted(folder.glob(f"*/**/*{_SUFFIX}"), key=lambda path: (path.parent, path.name))
    return tuple(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def _find_by_name(name: str) -> list[str]:
    """The config whose path below the config folder is the name; if there is none, those whose path ends with it."""
    short = _shorten(name)
    if not short or short in _list_files():
        return [short] if short else []
    return [each for each in list_configs() if each.endswith(f"/{short}")]


def _shorten(name: str) -> str:
    return name.removesuffix(_SUFFIX).removeprefix("./").removeprefix("configs/")
