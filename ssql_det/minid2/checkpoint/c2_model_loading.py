"""Weights whose names lack the model's prefixes: each goes where the longest end of a name fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["align_and_update_state_dicts"]


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, Any], ckpt_state_dict: dict[str, Any], c2_conversion: bool = True
) -> dict[str, Any]:
    """The checkpoint under the model's names; what fits nowhere keeps its own, and comes last.

    A name of the model takes the longest name in the checkpoint that is itself or its end, from a dot on. Where then
    the shapes differ, nothing is taken; two takers of one are an error.

    >>> model = {"backbone.conv.weight": torch.zeros(3), "head.my_conv.weight": torch.zeros(3)}
    >>> list(align_and_update_state_dicts(model, {"conv.weight": torch.ones(3), "fc": torch.ones(1)}, False))
    ['backbone.conv.weight', 'fc']
    """
    if c2_conversion:
        raise NotImplementedError(
            "minid2 does not know Caffe2's names of weights: convert the file first, or pass c2_conversion=False"
        )
    logger = logging.getLogger(__name__)
    takers: dict[str, str] = {}
    for name in sorted(model_state_dict):
        source = _longest_end(name, ckpt_state_dict)
        if source is None:
            continue
        ours, theirs = model_state_dict[name].shape, ckpt_state_dict[source].shape
        if ours != theirs:
            logger.warning(f"{source} is not loaded: its shape is {tuple(theirs)}, that of {name} {tuple(ours)}")
        elif source in takers:
            raise ValueError(f"it is not clear where weights go: {source} is the end of {takers[source]} and of {name}")
        else:
            takers[source] = name
    if not takers:
        logger.warning("No name in the checkpoint is the end of one in the model.")
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
    """In how many modules the model's names lie: the outermost ones whose members' own names begin alike."""
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
    """The parts, between dots, in which the first and the last name agree, also after ones in which they do not.

    >>> _longest_common_prefix(["a.b.weight", "a.c.weight"])
    'a.weight.'
    """
    parts = [name.split(".") for name in names]
    common = [one for one, other in zip(min(parts), max(parts), strict=False) if one == other]
    return "".join(f"{part}." for part in common)


def _longest_common_prefix_str(names: Sequence[str]) -> str:
    return os.path.commonprefix(names)  # noqa: RUF071 (letter by letter is meant)
