"""Matching weights to a model whose names have more prefixes: the longest suffix of a name decides."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["align_and_update_state_dicts"]


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, Any], ckpt_state_dict: dict[str, Any], c2_conversion: bool = True
) -> dict[str, Any]:
    """Rename the checkpoint's weights to the model's names; weights that match none keep their name and come last.

    A name of the model matches the longest name in the checkpoint that equals it or a suffix of it after a dot. If the
    shapes differ, the weight is not matched; if two names match one weight, it is an error.

    >>> model = {"backbone.conv.weight": torch.zeros(3), "head.my_conv.weight": torch.zeros(3)}
    >>> list(align_and_update_state_dicts(model, {"conv.weight": torch.ones(3), "fc": torch.ones(1)}, False))
    ['backbone.conv.weight', 'fc']
    """
    if c2_conversion:
        raise NotImplementedError(
            "minid2 does not support Caffe2's weight names: convert the file first, or pass c2_conversion=False"
        )
    logger = logging.getLogger(__name__)
    takers: dict[str, str] = {}
    for name in sorted(model_state_dict):
        source = _longest_end(name, ckpt_state_dict)
        if source is None:
            continue
        ours, theirs = model_state_dict[name].shape, ckpt_state_dict[source].shape
        if ours != theirs:
            logger.warning(f"{source} is not loaded: its shape is {tuple(theirs)}, but {name} has {tuple(ours)}")
        elif source in takers:
            raise ValueError(f"ambiguous weight: {source} is a suffix of {takers[source]} and of {name}")
        else:
            takers[source] = name
    if not takers:
        logger.warning("No weight of the checkpoint matched a name of the model.")
        return ckpt_state_dict
    sources = {name: source for source, name in takers.items()}
    module = _longest_common_prefix(list(sources))[:-1] or "model"
    logger.info(f"Following weights matched with submodule {module} - Total num: {_count_modules(sources)}")
    aligned = {name: ckpt_state_dict[source] for name, source in sources.items()}
    return aligned | {name: ckpt_state_dict[name] for name in sorted(ckpt_state_dict) if name not in takers}


def _longest_end(name: str, names: Mapping[str, Any]) -> str | None:
    """
    >>> _longest_end("head.fc.weight", {"weight": 1, "fc.weight": 2, "head": 3})
    'fc.weight'
    """
    parts = name.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end and end in names), None)


def _count_modules(sources: Mapping[str, str]) -> int:
    """The number of modules that Detectron2 would log: the outermost ones whose matched names have a common prefix."""
    modules = {name.rpartition(".")[0] + "." for name in sources if "." in name}
    grouped: set[str] = set()
    count = 0
    for module in sorted(modules, key=len):
        members = [name for name in sources if name.startswith(module)]
        if len(members) > 1 and _longest_common_prefix_str([sources[name] for name in members]):
            count += not grouped.issuperset(members)
            grouped.update(members)
    return count + len(sources) - len(grouped)


def _longest_common_prefix(names: Sequence[str]) -> str:
    """The dotted parts that the alphabetically first and last name share, even after parts that differ.

    >>> _longest_common_prefix(["a.b.weight", "a.c.weight"])
    'a.weight.'
    """
    parts = [name.split(".") for name in names]
    common = [one for one, other in zip(min(parts), max(parts), strict=False) if one == other]
    return "".join(f"{part}." for part in common)


def _longest_common_prefix_str(names: Sequence[str]) -> str:
    return os.path.commonprefix(names)  # noqa: RUF071 (character by character is intended)
