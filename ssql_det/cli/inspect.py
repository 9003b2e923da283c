"""Say what is in a checkpoint file, of any kind: its format and why, its network, tensors, and what is stored beside.

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

from ssql_det.cli.convert import add_reading_arguments, coverage, description
from ssql_det.core.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

HELP = "what a checkpoint file holds: format, network, tensors, stored config"
EXAMPLES = (
    "ssql-det inspect moco_v2_800ep_pretrain.pth.tar",
    "ssql-det inspect weights.bin --arch resnet50 --prefix model.encoder",
)
_MOST = 12  # lines of a kind
_DEEPEST = 5  # dicts in dicts
_LONGEST = 100  # characters of a value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_arguments(parser)


def run(options: argparse.Namespace) -> None:
    from ssql_det.convert import inspect_checkpoint, read_content
    from ssql_det.core.console import print_next
    from ssql_det.core.files import sha256

    path = Path(options.checkpoint)
    content = read_content(path)
    reading = (options.format, options.arch, options.branch, options.prefix)
    try:
        checkpoint = inspect_checkpoint(path, *reading, content)
    except UserError as unknown:
        if any(reading):
            raise
        digest, said = sha256(path), [f"not convertible: {unknown}"]
    else:
        assert checkpoint.source is not None
        digest, said = checkpoint.source.sha256, [*description(checkpoint), *coverage(checkpoint)]
    print("\n".join([f"{path.name}: {path.stat().st_size:,} bytes, sha256 {digest}", *said]))
    tensors = dict(_tensors(content))
    print("\n".join(_summary(tensors)))
    print("\n".join(_beside(content)))
    print_next("convert", options.checkpoint, "OUT.pkl", "--to", "detectron2")


def _tensors(content: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in dicts in dicts, by its path."""
    from ssql_det.convert.format import as_tensor

    if not isinstance(content, dict) or depth == _DEEPEST:
        return
    for key, value in content.items():
        tensor = as_tensor(value)
        if tensor is not None:
            yield f"{where}{key}", tensor
        else:
            yield from _tensors(value, f"{where}{key}/", depth + 1)


def _summary(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    parameters = sum(tensor.numel() for tensor in tensors.values())
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common())
    yield f"{len(tensors)} tensors, {parameters:,} elements ({kinds or 'none'})"
    for parts in (3, 2, 1):
        groups = Counter(_group(name, parts) for name in tensors)
        if len(groups) <= _MOST:
            break
    yield from _most(f"  {group}: {count}" for group, count in groups.items())


def _group(name: str, most: int) -> str:
    """The container and the first parts of a name, up to a number or the last part.

    >>> _group("state_dict/module.encoder_q.layer1.0.conv1.weight", 2)
    'state_dict/module.encoder_q.*'
    """
    container, slash, inside = name.rpartition("/")
    parts = inside.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return printable(f"{container}{slash}{'.'.join([*parts[: min(first, most)], '*'])}", _LONGEST)


def _beside(content: Any) -> Iterator[str]:
    """What is stored beside the tensors, each entry with a line; dicts and inert objects with a line a field."""
    from ssql_det.convert.format import as_tensor
    from ssql_det.core.unpickler import InertObject

    if not isinstance(content, dict):
        yield f"the file is not a dict but {_text(content)}"
        return
    for key, value in islice(content.items(), 1000):
        if as_tensor(value) is not None or any(True for _ in _tensors(value)):
            continue
        yield f"beside: {printable(str(key), _LONGEST)} = {_text(value)}"
        held = value.state if isinstance(value, InertObject) else value
        fields = held if isinstance(held, dict) else {}
        yield from _most(f"  {printable(str(name), _LONGEST)} = {_text(field)}" for name, field in fields.items())


def _most(lines: Iterator[str]) -> Iterator[str]:
    yield from islice(lines, _MOST)
    more = sum(1 for _ in lines)
    if more:
        yield f"  ... and {more} more"


def _text(value: Any) -> str:
    """A short text of any value: cut where it is long or deep, and without control characters."""
    if isinstance(value, dict):
        return f"{len(value)} entries"
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = _LONGEST
    return printable(shortener.repr(value), _LONGEST)
