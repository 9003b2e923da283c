"""``--card`` of the commands that write a file of weights: a model card beside it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssql_det.report.model_card import CardSubject

_START = "---\nlibrary_name: ssql_det\n"


def add_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--card",
        nargs="+",
        metavar="ROWS",
        help="write a model card beside OUT, as Markdown: what it is, and what these result rows say of its weights",
    )


def prepare_card(out: Path, files: list[str] | None, subject: CardSubject) -> str | None:
    """The text of the card; ``None`` without ``files`` of rows. Call it first: what is wrong with them, or with the
    card's place, is an error."""
    from ssql_det.core.errors import UserError
    from ssql_det.report.model_card import build_card
    from ssql_det.report.row_groups import load_rows

    if files is None:
        return None
    path = out.with_suffix(".md")
    if path.exists() and not (path.is_file() and path.read_text("utf-8", "replace").startswith(_START)):
        raise UserError(f"--card would replace {path}, which is no model card; move it away")
    return build_card(subject, load_rows(files))


def write_card(out: Path, text: str | None) -> None:
    from ssql_det.report.page_files import write_text

    if text is not None:
        path = out.with_suffix(".md")
        write_text(path, text)
        print(f"wrote {path}, its model card; on the hub a card is called README.md")
