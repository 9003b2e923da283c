"""What few bits do to the pretrained features: a section of the report, of what `analyze` left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ssql_det.analyze.page import tables_of_terms
from ssql_det.analyze.tables import terms_in
from ssql_det.report.document import Block, Folded, Heading, Picture, Text
from ssql_det.reproduce.reproduction import Reproduction

_FEW = 4  # networks that a reader can take in side by side


def features(of: Reproduction) -> Iterator[Block]:
    """
    >>> blocks = tuple(features(Reproduction(plan, outcomes, "ssql-det reproduce", minutes=8.9)))
    """
    for step in of.done("analyze"):
        terms, *maps = step.makes
        yield Heading("What few bits do to features")
        yield Text(
            "Networks of the first seed, before any detector. The squared distance of a quantized network's features "
            "from their float target, both of unit length, is the sum of three terms: what quantization moves, what "
            "two views of an image are apart (the contrastive term), and the cross term. With a spread near 0 features "
            f"have collapsed, and nothing is left to move. Weights are in `{step.folder.name}/report.html`."
        )
        blocks: tuple[Block, ...] = (*tables_of_terms(terms_in(terms.read_text("utf-8"))), *map(_map, maps))
        if len(maps) > _FEW:
            blocks = (Folded(f"Terms and maps of all {len(maps)} networks", blocks),)
        yield from blocks


def _map(path: Path) -> Picture:
    name = path.stem.removeprefix("tsne_")
    words = f"{name}: t-SNE of the backbone's features, all bit-widths embedded together, coloured by class"
    return Picture(path.name, path.read_bytes(), words)
