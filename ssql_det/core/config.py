"""Config files: YAML over a tree of defaults, ``_BASE_`` for inheritance, ``KEY VALUE`` on the command line.

The tree is fvcore's ``CfgNode``, as in Detectron2. What is added here is what a user meets: every mistake
is answered with its key and its file, and a typo with the nearest key there is.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import operator
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY, CfgNode

from ssql_det.core.config_files import find_config
from ssql_det.core.errors import UserError, did_you_mean, printable
from ssql_det.core.files import atomic_write

SAVED_CONFIG_NAME = "config.yaml"
_MOST_NAMED = 5
_MOST_VALUES = 10_000  # in a file, or in one key: aliases make any number of few bytes
_LARGEST = 3.4e38  # a float32's; infinity is beyond it too
_MOST_WHOLE = 1 << 32  # steps, sizes, a seed: with more a run neither ends nor fits
_logger = logging.getLogger(__name__)

RenamedKeys = Mapping[str, Sequence[str]]
"""By the name that a key had in earlier versions, the keys that took its place."""
_NONE: RenamedKeys = {}


def load_config(
    defaults: CfgNode,
    file: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    moved: RenamedKeys = _NONE,
) -> CfgNode:
    """A frozen copy of ``defaults``, with the file merged over it, then ``KEY VALUE`` pairs.

    A key that ``moved`` is refused with its name of today; what a run saved is read as it was meant.

    >>> cfg = load_config(defaults, "configs/pretrain/mini.yaml", ["OPTIM.LR", "0.1"])
    """
    config = defaults.clone()
    config.defrost()
    if file is not None:
        for key, value in read_config_file(file, moved).items():
            _set(config, key, value, str(file), moved)
    _merge_overrides(config, overrides, moved)
    config.freeze()
    return config


def save_config(values: Mapping[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write the plain values of a config beside its run; ``load_config(defaults, path)`` gives it back."""
    path = Path(directory) / SAVED_CONFIG_NAME
    with atomic_write(path, "w") as file:
        yaml.safe_dump(unflatten(values), file)
    return path


def check_output_dir(output_dir: str) -> Path:
    """The folder of ``OUTPUT_DIR``. An empty one would be the current folder, with a run's files among others."""
    if not output_dir:
        raise UserError("OUTPUT_DIR is empty; say where the run goes: OUTPUT_DIR FOLDER")
    return Path(output_dir)


def unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of values by their full keys.

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
    """Every full key of a config tree: ``OPTIM.LR``, ``SEED``, ...; a group without keys has none."""
    return [key for key, value in _flat(config) if not isinstance(value, CfgNode)]


def flatten_config(config: CfgNode) -> dict[str, Any]:
    """The tree flat, in values that YAML and JSON have: ``{"OPTIM.LR": 0.1, ...}``."""
    return dict(_flat(yaml.safe_load(config.dump())))


def read_saved_config(directory: str | os.PathLike[str], moved: RenamedKeys = _NONE) -> dict[str, Any]:
    """The same of the config that was saved beside a run."""
    return read_config_file(Path(directory) / SAVED_CONFIG_NAME, moved)


def read_config_file(file: str | os.PathLike[str], moved: RenamedKeys = _NONE) -> dict[str, Any]:
    """The same of what a file and its bases say, without any defaults."""
    return _read_with_bases(find_config(file), (), moved)


def rename_keys(values: Mapping[str, Any], moved: RenamedKeys) -> dict[str, Any]:
    """Values of an earlier version by the keys of today.

    >>> rename_keys({"SSQL.METHOD": "BYOL", "SEED": 0}, {"SSQL.METHOD": ["SSQL_DET.METHOD"]})
    {'SSQL_DET.METHOD': 'BYOL', 'SEED': 0}
    """
    return {new: value for key, value in values.items() for new in moved.get(key, (key,))}


def check_same_config(before: Mapping[str, Any], now: Mapping[str, Any], where: str, cure: str) -> None:
    """Refuse to go on at ``where`` with other values; the order of a mapping's entries counts as well."""
    keys = [key for key in {**before, **now} if json.dumps(before.get(key)) != json.dumps(now.get(key))]
    if keys:
        named = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in keys[:_MOST_NAMED])
        more = f" and {len(keys) - _MOST_NAMED} more that differ" if len(keys) > _MOST_NAMED else ""
        raise UserError(f"{where} has {named}{more}; {cure}")


def find_effective_config(file: str | os.PathLike[str], no_matter: Collection[str]) -> Path:
    """The file itself, or the base that it only gives another name: where all it sets are keys that do not matter.

    >>> find_effective_config("table6/ssql", ["MODEL.WEIGHTS", "SSQL_DET.METHOD", "OUTPUT_DIR"]).name
    'voc_r18_c4.yaml'
    """
    path = find_config(file)
    own = _read(path)
    base = own.pop(BASE_KEY, None)
    if not isinstance(base, str) or not own.keys() <= set(no_matter):
        return path
    return find_effective_config(os.path.normpath(path.parent / base), no_matter)


def check_resume(
    values: Mapping[str, Any],
    directory: str | os.PathLike[str],
    is_there: bool,
    resume: bool,
    may_change: Collection[str],
    defaults: Mapping[str, Any],
    moved: RenamedKeys,
) -> bool:
    """Whether a run that ``is_there`` is to be gone on with: refused without being asked to, and in another config than
    was saved beside it, but for some keys. A key that was not there when the run began had its default.
    """
    if not is_there:
        return False
    if not resume:
        raise UserError(f"{directory} holds a run already; say --resume to go on with it, or choose another OUTPUT_DIR")
    before, now = (
        {key: value for key, value in each.items() if key not in may_change}
        for each in (read_saved_config(directory, moved), values)
    )
    before |= {key: value for key, value in defaults.items() if key in now and key not in before}
    check_same_config(before, now, f"the run in {directory}", "resume with its config, or choose another OUTPUT_DIR")
    return True


def check_minimums(config: CfgNode, least: Mapping[str, float]) -> None:
    """Refuse a number that would end in a traceback, or never: ``{"OPTIM.EPOCHS": 1, "SEED": 0}``."""
    for key, bound in least.items():
        value = _get(config, key)
        if value < bound:
            raise UserError(f"{key} must be {bound} or more, got {value}")
        if isinstance(value, int) and value > _MOST_WHOLE:
            raise UserError(f"{key} is too large, got {printable(str(value), 40)}; a whole number is 2**32 at most")
        if value > _LARGEST:
            raise UserError(f"{key} is too large, got {value}; a float32 ends at 3.4e38")


def _read_with_bases(path: Path, opened: tuple[Path, ...], moved: RenamedKeys) -> dict[str, Any]:
    """The file's keys over its bases' (relative to the file), nearest last."""
    if path.is_dir():
        raise UserError(f"config file {path} is a directory; name a .yaml file in it")
    if not path.is_file():
        wanted_by = f", named as {BASE_KEY} in {opened[-1]}" if opened else ""
        raise UserError(f"there is no config file {path}{wanted_by}; check the path")
    if path.resolve() in opened:
        raise UserError(f"config file {path} inherits from itself; remove {BASE_KEY} from one file of the circle")
    content = _read(path)
    if path.name == SAVED_CONFIG_NAME and (former := content.keys() & moved.keys()):  # nobody wrote it by hand
        _logger.info("%s has keys of an earlier version, such as %s; they are read as today's", path, min(former))
        content = rename_keys(content, moved)
    bases = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        merged |= _read_with_bases(path.parent / os.path.expanduser(str(base)), (*opened, path.resolve()), moved)
    return merged | content


def _read(path: Path) -> dict[str, Any]:
    """One file's keys."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise UserError(f"config file {path} holds a {type(content).__name__}; it must hold KEY: VALUE pairs")
        keys = list(itertools.islice(_flat(content), _MOST_VALUES + 1))
    except (yaml.YAMLError, ValueError) as failure:
        problem = " ".join(str(failure).split())
        raise UserError(f"config file {path} is not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"config file {path} is nested too deeply, or in itself; write it out flat") from None
    if len(keys) > _MOST_VALUES:
        raise UserError(f"config file {path} has more than {_MOST_VALUES} keys; is it a config?")
    return dict(keys)


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _merge_overrides(config: CfgNode, overrides: Sequence[str], moved: RenamedKeys) -> None:
    for option in overrides:
        if option.startswith("--"):
            raise UserError(f"{option} stands behind KEY VALUE pairs; options come before them")
    if len(overrides) % 2:
        raise UserError(f"overrides come as KEY VALUE pairs, but {overrides[-1]!r} stands alone; write KEY VALUE")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _set(config, key, value, "the command line", moved)


def _set(config: CfgNode, key: str, value: Any, where: str, moved: RenamedKeys) -> None:
    if key in moved:
        one_of = "one of " if len(moved[key]) > 1 else ""
        raise UserError(f"config key {key} in {where} is now {one_of}{', '.join(moved[key])}; write that")
    known = config_keys(config)
    if key not in known:
        below = [name for name in known if name.startswith(f"{key}.")]
        hint = f"; it is a group, set one of its keys, such as {below[0]}" if below else did_you_mean(key, known)
        raise UserError(f"unknown config key {key} in {where}{hint}")
    current = _get(config, key)
    if isinstance(current, float) and isinstance(value, (int, str)):
        value = _as_float(value)  # 1 and 1e-3 are numbers too; YAML and yacs disagree
    inside = list(itertools.islice(_inside(value), _MOST_VALUES + 1))
    if len(inside) > _MOST_VALUES:
        raise UserError(f"config key {key} in {where} is too long, or holds itself; a key has {_MOST_VALUES} values")
    if any(isinstance(each, float) and math.isnan(each) for each in inside):  # it passes every comparison
        raise UserError(f"config key {key} in {where} cannot be {value!r}: a number is wanted")
    if isinstance(current, str) and isinstance(value, str):
        value = repr(value)  # yacs evaluates strings, and would take a name such as 123 for a number
    try:
        config.merge_from_list([key, value])
    except (ValueError, AssertionError) as mismatch:
        kind = type(current).__name__
        raise UserError(
            f"config key {key} in {where} cannot be {value!r}: it is of type {kind}, now {current!r}"
        ) from mismatch


def _get(config: CfgNode, key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), config)


def _as_float(value: int | str) -> Any:
    try:
        return value if isinstance(value, bool) else float(value)
    except (OverflowError, ValueError):
        return value


def _inside(value: Any) -> Iterator[Any]:
    """What a value is made of, however deep; without end where a YAML alias makes a list of itself."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (dict, list, tuple)):
            waiting.extend(each.values() if isinstance(each, dict) else each)
        yield each
