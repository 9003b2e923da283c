"""The YAML of a config file, read within limits, since aliases and merge keys let a few bytes expand without end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import read_text

_MAX_BYTES = 1 << 18
_MAX_VALUES = 10_000  # lists, groups and keys count as well
_MAX_DIGITS = 40
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "map", "merge", "null", "seq", "str")}


def load_yaml(path: Path) -> dict[str, Any]:
    """The groups and values of a config file; a ``UserError`` if it is no YAML, or too large."""
    if path.is_file() and os.path.getsize(path) > _MAX_BYTES:
        raise UserError(f"config file {path} has more than {_MAX_BYTES} bytes; is it a config?")
    try:
        tree = _load(read_text(path))
    except _InvalidConfigError as failure:
        raise UserError(f"config file {path} {failure}") from None
    except RecursionError:
        raise UserError(f"config file {path} is nested too deeply; write it out flat") from None
    except (yaml.YAMLError, ValueError) as failure:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(failure).split())}") from None
    except (AttributeError, LookupError, TypeError):  # from PyYAML, for `!!bool x`
        raise UserError(f"config file {path} is not valid YAML: a value does not fit its tag; remove it") from None
    if not isinstance(tree, dict | None):
        raise UserError(f"config file {path} holds a {type(tree).__name__}; it must hold KEY: VALUE pairs")
    return tree or {}


class _InvalidConfigError(Exception):
    """YAML that no config has. The message follows the name of the file."""


class _Loader(yaml.SafeLoader):
    """Stops at too many nodes, before it has read the whole file."""

    _num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._num_nodes += 1
        _check_count(self._num_nodes)
        return super().compose_node(parent, index)


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """The number of values that a node expands to. ``counts`` has those of the nodes before it, by ``id``."""
    if id(node) not in counts:
        _check_node(node)
        counts[id(node)] = 0  # until its parts are counted
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [each for pair in parts for each in pair]
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
        _check_count(counts[id(node)])
    elif counts[id(node)] == 0:
        raise _InvalidConfigError("contains itself; write it out without aliases")
    return counts[id(node)]


def _check_node(node: yaml.Node) -> None:
    if node.tag not in _TAGS:
        name = printable(node.tag.removeprefix("tag:yaml.org,2002:"), 40)
        raise _InvalidConfigError(f"has a value of YAML's type {name}; write text in quotes, numbers or lists")
    if node.tag.endswith(":int") and len(node.value) > _MAX_DIGITS:
        raise _InvalidConfigError(f"has a whole number of {len(node.value)} digits; most is {_MAX_DIGITS}")


def _check_count(count: int) -> None:
    if count > _MAX_VALUES:
        raise _InvalidConfigError(f"has more than {_MAX_VALUES} keys or values; is it a config?")
