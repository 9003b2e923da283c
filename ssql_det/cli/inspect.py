"""Print what a checkpoint file holds: its format and why, its network, its tensors, and its other entries.

Nothing in the file is executed, and nothing is written.
"""

from __future__ import annotations

import argparse
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql_det.cli.convert import add_reading_arguments, describe_checkpoint, describe_coverage
from ssql_det.core.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

HELP = "print what a checkpoint file holds: format, network, tensors, stored config"
EXAMPLES = (
    "ssql-det inspect moco_v2_800ep_pretrain.pth.tar",
    "ssql-det inspect weights.bin --arch resnet50 --prefix model.encoder",
)
_MAX_LINES = 12  # of one kind
_MAX_DEPTH = 5  # of nested dicts
_MAX_LENGTH = 100  # of a value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_arguments(parser)


def run(options: argparse.Namespace) -> None:
    from ssql_det.convert import inspect_checkpoint, read_content
    from ssql_det.core.console import print_next
    from ssql_det.core.files import sha256

    path = Path(options.checkpoint)
    content = read_content(path)
    reading_options = (options.format, options.arch, options.branch, options.prefix)
    try:
        checkpoint = inspect_checkpoint(path, *reading_options, content)
    except UserError as error:
        if any(reading_options):
            raise
        digest, lines = sha256(path), [f"not convertible: {error}"]
    else:
        assert checkpoint.source is not None
        digest = checkpoint.source.sha256
        lines = [*describe_checkpoint(checkpoint), *describe_coverage(checkpoint)]
    print("\n".join([f"{path.name}: {path.stat().st_size:,} bytes, sha256 {digest}", *lines]))
    print("\n".join(_summarize_tensors(dict(_find_tensors(content)))))
    print("\n".join(_describe_other_entries(content)))
    print_next("convert", options.checkpoint, "OUT.pkl", "--to", "detectron2")


def _find_tensors(content: Any, path: str = "", around: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts, by its path. A dict may contain itself: ``around`` has the ids of those around.

    >>> [path for path, _ in _find_tensors({"model": {"bias": torch.zeros(1)}, "epoch": 3})]
    ['model/bias']
    """
    from ssql_det.convert.format import as_tensor

    if not isinstance(content, dict) or len(around) == _MAX_DEPTH or id(content) in around:
        return
    for key, value in content.items():
        tensor = as_tensor(value)
        if tensor is not None:
            yield f"{path}{key}", tensor
        else:
            yield from _find_tensors(value, f"{path}{key}/", (*around, id(content)))


def _summarize_tensors(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """How many there are, of which types, and how many in each group of names."""
    parameters = sum(tensor.numel() for tensor in tensors.values())
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    yield f"{len(tensors)} tensors, {parameters:,} elements ({kinds or 'none'})"
    for max_parts in (3, 2, 1):
        groups = Counter(_get_group(name, max_parts) for name in tensors)
        if len(groups) <= _MAX_LINES:
            break
    yield from _limit_lines(f"  {group}: {count}" for group, count in groups.items())


def _get_group(name: str, max_parts: int) -> str:
    """The container and the first parts of a name, up to a number or the last part.

    >>> _get_group("state_dict/module.encoder_q.layer1.0.conv1.weight", 2)
    'state_dict/module.encoder_q.*'
    """
    container, slash, inside = name.rpartition("/")
    parts = inside.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return printable(f"{container}{slash}{'.'.join([*parts[: min(first, max_parts)], '*'])}", _MAX_LENGTH)


def _describe_other_entries(content: Any) -> Iterator[str]:
    """A line for each entry that has no tensors; for dicts and objects that are not built, also one for each field."""
    from ssql_det.convert.format import as_tensor
    from ssql_det.core.inert import InertObject

    if not isinstance(content, dict):
        yield f"the file is not a dict but {_shorten(content)}"
        return
    for key, value in islice(content.items(), 1000):
        if as_tensor(value) is not None or any(True for _ in _find_tensors(value)):
            continue
        yield f"other entry: {printable(str(key), _MAX_LENGTH)} = {_shorten(value)}"
        state = value.state if isinstance(value, InertObject) else value
        fields = state if isinstance(state, dict) else {}
        yield from _limit_lines(
            f"  {printable(str(name), _MAX_LENGTH)} = {_shorten(field)}" for name, field in fields.items()
        )


def _limit_lines(lines: Iterator[str]) -> Iterator[str]:
    yield from islice(lines, _MAX_LINES)
    more = sum(1 for _ in lines)
    if more:
        yield f"  ... and {more} more"


class _Shortener(reprlib.Repr):
    """Also abridges what ``reprlib`` prints whole: ordered dicts, and arrays of objects."""

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, dict) or str(getattr(value, "dtype", None)) == "object":
            return f"<{type(value).__name__}>"
        return super().repr_instance(value, level)


def _shorten(value: Any) -> str:
    """A short text of any value, without control characters.

    >>> _shorten({"lr": 0.03}), _shorten("SGD")
    ('1 entries', "'SGD'")
    """
    if isinstance(value, dict):
        return f"{len(value)} entries"
    shortener = _Shortener()
    shortener.maxstring = shortener.maxother = _MAX_LENGTH
    return printable(shortener.repr(value), _MAX_LENGTH)
