"""Config files: YAML merged over defaults, ``_BASE_`` for inheritance, ``KEY VALUE`` on the command line.

The tree is fvcore's ``CfgNode``, as in Detectron2. Every mistake is a ``UserError`` that names the key and the file;
for an unknown key it suggests the nearest one.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import operator
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY, CfgNode

from ssql_det.core.config_files import find_config
from ssql_det.core.config_values import BoundsByKey, find_bounds, fit_value, is_valid_text, show
from ssql_det.core.config_yaml import load_yaml
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.files import atomic_write

SAVED_CONFIG_NAME = "config.yaml"
_MAX_LISTED = 5  # changed keys in a message
_MAX_FILES = 50  # that a config inherits from; each may name several
_logger = logging.getLogger(__name__)

RenamedKeys = Mapping[str, Sequence[str]]
"""Maps a key of an earlier version to the keys that replace it."""
_NO_RENAMED_KEYS: RenamedKeys = {}
_NO_BOUNDS: BoundsByKey = {}


def load_config(
    defaults: CfgNode,
    file: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    renamed_keys: RenamedKeys = _NO_RENAMED_KEYS,
    bounds: BoundsByKey = _NO_BOUNDS,
) -> CfgNode:
    """A frozen copy of ``defaults`` with the file merged over it, then the ``KEY VALUE`` pairs.

    Each value must be of its default's type and within its bounds. A key of an earlier version is refused with its new
    name, except in the config that a run saved: there it is translated.

    >>> from fvcore.common.config import CfgNode
    >>> load_config(CfgNode({"OPTIM": {"LR": 0.05}}), overrides=["OPTIM.LR", "0.1"]).OPTIM.LR
    0.1
    """
    config = defaults.clone()
    config.defrost()
    file_values = read_config_file(file, renamed_keys).items() if file is not None else ()
    pairs = [*((*each, str(file)) for each in file_values), *((*each, "the command line") for each in _pair(overrides))]
    default_values = _map_values(defaults)
    for key, value, where in pairs:
        _check_key(key, default_values, where, renamed_keys)
        fitted = fit_value(key, value, default_values[key], find_bounds(key, bounds), f" in {where}")
        *groups, name = key.split(".")
        functools.reduce(operator.getitem, groups, config)[name] = fitted
    config.freeze()
    return config


def check_values(config: CfgNode, defaults: CfgNode, bounds: BoundsByKey) -> None:
    """Check the values of a config that was changed after it was loaded, or was made otherwise."""
    values = _map_values(config)
    for key, default in _map_values(defaults).items():
        fit_value(key, values[key], default, find_bounds(key, bounds))


def save_config(values: Mapping[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write a flat config (see `flatten_config`) into a run's folder; ``load_config(defaults, path)`` reads it."""
    path = Path(directory) / SAVED_CONFIG_NAME
    with atomic_write(path, "w") as file:
        yaml.safe_dump(unflatten(values), file)
    return path


def check_output_dir(output_dir: str) -> Path:
    """The folder that ``OUTPUT_DIR`` names. An empty value is refused: it would mean the current folder."""
    if not output_dir:
        raise UserError("OUTPUT_DIR is empty; set it to the run's folder: OUTPUT_DIR FOLDER")
    return Path(output_dir)


def unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a flat config.

    >>> unflatten({"OPTIM.LR": 0.1, "SEED": 0})
    {'OPTIM': {'LR': 0.1}, 'SEED': 0}
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return tree


def config_keys(config: CfgNode) -> list[str]:
    """Every full key of a config tree: ``OPTIM.LR``, ``SEED``, ...; an empty group has none."""
    return list(_map_values(config))


def flatten_config(config: CfgNode) -> dict[str, Any]:
    """A flat config, ``{"OPTIM.LR": 0.1, ...}``, with the order and the values of a saved one: lists for tuples.

    >>> from fvcore.common.config import CfgNode
    >>> flatten_config(CfgNode({"SEED": 0, "OPTIM": {"STEPS": (60, 80)}}))
    {'OPTIM.STEPS': [60, 80], 'SEED': 0}
    """
    return dict(_flatten(_to_saved(config)))


def read_saved_config(
    directory: str | os.PathLike[str], renamed_keys: RenamedKeys = _NO_RENAMED_KEYS
) -> dict[str, Any]:
    """The flat config that was saved in a run's folder."""
    return read_config_file(Path(directory) / SAVED_CONFIG_NAME, renamed_keys)


def read_config_file(file: str | os.PathLike[str], renamed_keys: RenamedKeys = _NO_RENAMED_KEYS) -> dict[str, Any]:
    """The flat config that a file and its bases set, without defaults."""
    return _read_with_bases(find_config(file), (), renamed_keys, itertools.count())


def rename_keys(values: Mapping[str, Any], renamed_keys: RenamedKeys) -> dict[str, Any]:
    """A flat config with keys of earlier versions replaced by today's.

    >>> rename_keys({"SSQL.METHOD": "BYOL", "SEED": 0}, {"SSQL.METHOD": ["SSQL_DET.METHOD"]})
    {'SSQL_DET.METHOD': 'BYOL', 'SEED': 0}
    """
    return {new: value for key, value in values.items() for new in renamed_keys.get(key, (key,))}


def check_same_config(before: Mapping[str, Any], now: Mapping[str, Any], where: str, advice: str) -> None:
    """Refuse to continue in ``where`` with other values; the order of a mapping's entries counts as well.

    >>> check_same_config({"SEED": 0}, {"SEED": 1}, "the run in runs/a", "choose another OUTPUT_DIR")
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: the run in runs/a has SEED 0 (now 1); choose another OUTPUT_DIR
    """
    changed = [key for key in {**before, **now} if json.dumps(before.get(key)) != json.dumps(now.get(key))]
    if changed:
        listed = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in changed[:_MAX_LISTED])
        more = f" and {len(changed) - _MAX_LISTED} more that differ" if len(changed) > _MAX_LISTED else ""
        raise UserError(f"{where} has {listed}{more}; {advice}")


def find_effective_config(file: str | os.PathLike[str], ignored_keys: Collection[str]) -> Path:
    """The file itself, or its base if the file sets only ignored keys: then results with either are comparable.

    >>> find_effective_config("table6/ssql", ["MODEL.WEIGHTS", "SSQL_DET.METHOD", "OUTPUT_DIR"]).name
    'voc_r18_c4.yaml'
    """
    path = find_config(file)
    values = _read(path)
    base = values.pop(BASE_KEY, None)
    if not isinstance(base, str) or not values.keys() <= set(ignored_keys):
        return path
    return find_effective_config(os.path.normpath(path.parent / base), ignored_keys)


def _read_with_bases(
    path: Path, opened: tuple[Path, ...], renamed_keys: RenamedKeys, file_numbers: Iterator[int]
) -> dict[str, Any]:
    """The file's values merged over those of its bases, whose paths are relative to the file.

    ``opened``: the files that led to this one. ``file_numbers``: counts all files.
    """
    if next(file_numbers) > _MAX_FILES:
        raise UserError(f"config file {opened[0]} inherits from more than {_MAX_FILES} files; leave out a {BASE_KEY}")
    if path.is_dir():
        raise UserError(f"config file {path} is a directory; name a .yaml file in it")
    if not path.is_file():
        origin = f", which {BASE_KEY} in {opened[-1]} names" if opened else ""
        raise UserError(f"there is no config file {path}{origin}; check the path")
    if path.resolve() in opened:
        raise UserError(f"config file {path} inherits from itself; remove {BASE_KEY} from one file of the cycle")
    values = _read(path)
    if path.name == SAVED_CONFIG_NAME and (old_keys := values.keys() & renamed_keys.keys()):  # not written by hand
        _logger.info("%s has keys of an earlier version, such as %s; they are translated", path, min(old_keys))
        values = rename_keys(values, renamed_keys)
    bases = values.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not is_valid_text(base):
            raise UserError(f"{BASE_KEY} in {path} must be the path of a config file, got {show(base)}")
        base_path = path.parent / os.path.expanduser(base)
        merged |= _read_with_bases(base_path, (*opened, path.resolve()), renamed_keys, file_numbers)
    return merged | values


def _read(path: Path) -> dict[str, Any]:
    """The flat config of one file, without its bases."""
    return dict(_flatten(load_yaml(path)))


def _to_saved(value: Any) -> Any:
    """The value that YAML reads after it has written this one."""
    if isinstance(value, dict):
        return {key: _to_saved(value[key]) for key in sorted(value)}
    return [_to_saved(each) for each in value] if isinstance(value, (list, tuple)) else value


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _map_values(config: CfgNode) -> dict[str, Any]:
    return {key: value for key, value in _flatten(config) if not isinstance(value, CfgNode)}


def _pair(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The keys and values of a command line."""
    for option in overrides:
        if option.startswith("--"):
            raise UserError(f"{option} comes after KEY VALUE pairs; move it before them")
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs, but {overrides[-1]!r} has no value; write KEY VALUE")
    return zip(overrides[::2], overrides[1::2], strict=True)


def _check_key(key: str, known: Collection[str], where: str, renamed_keys: RenamedKeys) -> None:
    if key in renamed_keys:
        new_keys = renamed_keys[key]
        one_of = "one of " if len(new_keys) > 1 else ""
        raise UserError(f"config key {key} in {where} is now {one_of}{', '.join(new_keys)}; write that")
    if key not in known:
        in_group = [name for name in known if name.startswith(f"{key}.")]
        hint = f"; it is a group, set one of its keys, such as {in_group[0]}" if in_group else did_you_mean(key, known)
        raise UserError(f"unknown config key {key} in {where}{hint}")
