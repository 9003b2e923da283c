"""What an exported file says about itself: one JSON text, the entry ``ssql_det`` of the ONNX file's metadata."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ssql_det.core.errors import UserError
from ssql_det.core.json_files import parse_json

FORMAT = 1  # of the metadata; a file of a later one needs a later ssql_det
METADATA_KEY = "ssql_det"
KINDS = ("detector", "backbone")
CHANNELS = ("RGB", "BGR")
FLOAT_BITS = "FP"  # the bit-width of a file that computes with floats
_MAX_SIDE = 1 << 31


@dataclass(frozen=True)
class InputRule:
    """How an image becomes the network's input: the order of its channels, and Detectron2's ``ResizeShortestEdge``.

    The shorter side becomes ``min_size`` pixels, or less if the longer side would exceed ``max_size``; a ``min_size``
    of 0 leaves the image as it is, whatever ``max_size`` is.
    """

    channels: str
    min_size: int
    max_size: int

    def get_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the resized image; a side is 0 if the image is too narrow for the rule.

        >>> InputRule("RGB", min_size=800, max_size=1333).get_size(480, 640)
        (800, 1067)
        """
        if self.min_size == 0:
            return height, width
        # The order of the operations is Detectron2's: another one would round some sizes differently.
        scale = self.min_size / min(height, width)
        sides = (float(self.min_size), scale * width) if height < width else (scale * height, float(self.min_size))
        if max(sides) > self.max_size:
            shrink = self.max_size / max(sides)
            sides = (sides[0] * shrink, sides[1] * shrink)
        return int(sides[0] + 0.5), int(sides[1] + 0.5)


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of an exported file.

    ``classes`` and ``category_ids`` (of the data set, such as COCO's 1 to 90) are in the order of the class indices,
    and empty for a backbone. ``bits``, ``scheme`` and ``scope`` are those of the quantization; ``weights`` has the
    ``file`` and the ``sha256`` of the checkpoint.

    >>> metadata = ModelMetadata("detector", ("cat", "dog"), (17, 18), InputRule("BGR", 800, 1333))
    >>> ModelMetadata.from_json(metadata.to_json(), "detector.onnx") == metadata
    True
    """

    kind: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    input: InputRule
    bits: str = FLOAT_BITS
    scheme: str = ""
    scope: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, source: str | os.PathLike[str]) -> ModelMetadata:
        """From :meth:`to_json`; ``source`` is the file that the text was read from, for the messages."""
        try:
            return cls._from_content(parse_json(text), source)
        except (ValueError, KeyError) as failure:
            reason = f"it has no {failure}" if isinstance(failure, KeyError) else str(failure)
            raise UserError(f"the metadata of {source} is damaged: {reason}; export the file again") from None

    @classmethod
    def _from_content(cls, content: Any, source: str | os.PathLike[str]) -> ModelMetadata:
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if _check_int("format", content["format"], 1) > FORMAT:
            raise UserError(
                f"{source} is of format {reprlib.repr(content['format'])}, made by a newer ssql_det; upgrade this one"
            )
        kind = _check_choice("kind", content["kind"], KINDS)
        classes = tuple(_check_text("classes", name) for name in _check_list("classes", content["classes"]))
        category_ids = tuple(
            _check_int("category_ids", number, 0) for number in _check_list("category_ids", content["category_ids"])
        )
        if len(category_ids) != len(classes) or len(set(category_ids)) < len(category_ids):
            raise ValueError(f"its {len(classes)} classes need as many category_ids, all different")
        if kind == "detector" and not classes:
            raise ValueError("a detector needs classes")
        rule = _check_mapping("input", content["input"])
        min_size = _check_int("min_size", rule["min_size"], 0)
        return cls(
            kind=kind,
            classes=classes,
            category_ids=category_ids,
            input=InputRule(
                _check_choice("channels", rule["channels"], CHANNELS),
                min_size,
                _check_int("max_size", rule["max_size"], 1 if min_size else 0),
            ),
            bits=_check_text("bits", content["bits"]),
            scheme=_check_text("scheme", content["scheme"]),
            scope=_check_text("scope", content["scope"]),
            weights=_check_texts("weights", content["weights"]),
            config=_check_text("config", content["config"]),
            versions=_check_texts("versions", content["versions"]),
        )


def _check_int(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _MAX_SIDE:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {reprlib.repr(value)}")
    return value


def _check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {reprlib.repr(value)}")
    return value


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, got {reprlib.repr(value)}")
    return str(value)


def _check_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {reprlib.repr(value)}")
    return value


def _check_mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {reprlib.repr(value)}")
    return value


def _check_texts(name: str, value: Any) -> dict[str, str]:
    return {key: _check_text(f"{name}.{key}", text) for key, text in _check_mapping(name, value).items()}
