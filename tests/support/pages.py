"""What a Markdown page tells people to type, to run and to click; ``test_pages.py`` judges commands.

Commands stand in blocks of a shell, whole, and in running text, where they may be abbreviated. In a block without a
language one known program makes all lines commands; else, as in ``text`` and ``console``, they are those behind ``$``.
"""

import argparse
import ast
import contextlib
import io
import itertools
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

from ssql_det.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PYTHON = ("python", "py")
QUIET = ("", "text", "console", "yaml", "json", "html")  # any other language is taken for a shell's, and judged as that
FENCE = re.compile(r"\s*(`{3,}(?!.*`)|~{3,})\s*([\w-]*)")
SPAN = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)  # not across an empty line
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)[^)]*\)|^\s*\[[^\]]+\]:\s*(\S+)|(?:href|src)=["']([^"']+)""", re.MULTILINE)
ASSIGNMENT = r"[A-Za-z_]\w*=\S*"
BEFORE = re.compile(rf"{ASSIGNMENT}|(do|done)$")  # a command, and no part of it
PROGRAMS = r"(\.?venv/bin/)?(ssql-det|python3?|pytest|torchrun|sbatch|pip|ruff|mypy|git|conda)|(tools|\.ci)/\S+"
COMMAND = re.compile(rf"({ASSIGNMENT}\s+)*({PROGRAMS})(\s|$)")
PATH = re.compile(r"(benchmarks|tests|configs|docs|ssql_det)/\S+$")
OPERATORS = "&|;"


@dataclass(frozen=True)
class Piece:
    """A command's words, the code of a block, or the target of a link; ``str`` names it by page and line."""

    page: Path
    line: int
    text: str = ""
    words: tuple[str, ...] = ()
    is_whole: bool = True

    def __str__(self):
        return " ".join([f"{called(self.page)}:{self.line}", *(self.words or self.text.split())[:2]])


@contextlib.contextmanager
def at(piece):
    """Any complaint becomes a failure that says where."""

    def complain(parser, message):
        raise ValueError(message)

    quiet = contextlib.redirect_stdout(io.StringIO())
    try:
        with quiet, mock.patch("argparse.ArgumentParser.error", complain), contextlib.suppress(SystemExit):  # --help
            yield
    except Exception as complaint:
        raise AssertionError(f"{piece}: {complaint}") from complaint


def called(page):
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def parts(page):
    """The blocks as (language, number of the first line, lines), and the prose: the page with their lines empty."""
    blocks, prose, fence = [], [], ""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        mark = FENCE.match(line)
        prose.append("" if fence or mark else line)
        if not fence and mark:
            fence = mark[1]
            blocks.append((mark[2], number + 1, []))
        elif fence and mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""
        elif fence:
            blocks[-1][2].append(line)
    assert not fence, f"{called(page)}:{blocks[-1][1] - 1}: this block has no end"
    return blocks, "\n".join(prose)


def python_blocks(page):
    for language, first, lines in parts(page)[0]:
        if language in PYTHON:
            yield Piece(page, first, textwrap.dedent("\n".join(lines)))


def commands(page):
    """Every command of a page: those of the blocks, then those in running text."""
    blocks, prose = parts(page)
    for language, first, lines in blocks:
        if language not in PYTHON:
            is_shell = language not in QUIET or (language == "" and any(map(COMMAND.match, lines)))
            for line, words in in_shell(first, lines if is_shell else [*typed(lines)]):
                yield Piece(page, line, words=words)
    for span in SPAN.finditer(prose):
        text = " ".join(span[2].replace("…", "...").split())
        name, _, more = text.partition(" ")
        is_ours = name in COMMANDS and more and not re.match(ASSIGNMENT, more)  # `export A=b` is the shell's
        text = f"ssql-det {text}" if is_ours else text
        if COMMAND.match(text) or PATH.match(text):
            for words in simple_commands(text):
                # benchmarks/{a,b}.py is short for two commands here; a shell would give both files to one
                for each in itertools.product(*map(expanded, words)):
                    yield Piece(page, prose.count("\n", 0, span.start()) + 1, words=each, is_whole=False)


def typed(lines):
    """The lines behind a prompt, without it; the others are empty."""
    before = ""
    for line in lines:
        is_typed = line.startswith("$ ") or before.endswith("\\")
        before = line.removeprefix("$ ") if is_typed else ""
        yield before


def in_shell(first, lines):
    """Each command of a block with the number of the line where it begins."""
    joined, start = "", first
    for number, line in enumerate([*lines, ""], first):
        start = start if joined else number
        joined += line.removesuffix("\\")
        if not line.endswith("\\"):
            for words in simple_commands(joined):
                yield start, tuple(itertools.chain.from_iterable(map(expanded, words)))
            joined = ""


def simple_commands(line):
    """Words between ``&&``, ``;`` and pipes, without comments, redirections, leading assignments and a loop's words."""
    line = re.sub(r"""('[^']*'|"[^"]*")|(?:^|(?<=\s))#.*""", lambda found: found[1] or "", line)
    line = re.sub(r"<[\w .-]+>", lambda found: found[0].replace(" ", "_"), line)  # <a folder> is one word
    line = re.sub(r"(?<=\s)([\d&]?>>?\s*|<\s+)\S+", "", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=OPERATORS)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        found = [*lexer, ";"]
    except ValueError:  # a quote without its end: no known program, so it will be complained of
        found = [line, ";"]
    words = []
    for word in found:
        if word and set(word) <= set(OPERATORS):
            if words:
                yield words
            words = []
        elif words or not BEFORE.match(word):
            words.append(word)


def expanded(word):
    braces = re.search(r"\{([\w.-]*(?:,[\w.-]*)+)\}", word)
    if not braces:
        return [word]
    before, after = word[: braces.start()], word[braces.end() :]
    return [each for inner in braces[1].split(",") for each in expanded(before + inner + after)]


def parser_of(calls):
    """The parser of a file that would take long to import, from its ``add_argument`` calls."""
    parser, kinds = argparse.ArgumentParser(allow_abbrev=False), {"int": int, "float": float}
    for call in calls:
        facts = {}
        for each in call.keywords:
            if each.arg in ("nargs", "action", "type", "choices"):
                with contextlib.suppress(ValueError):  # a name: of a type, or it is not judged
                    facts[each.arg] = kinds.get(getattr(each.value, "id", "")) or ast.literal_eval(each.value)
        parser.add_argument(*map(ast.literal_eval, call.args), **facts)
    return parser


def links(page):
    """Every target, of Markdown's links and images, of references and of HTML."""
    prose = SPAN.sub(lambda span: re.sub(r"[^\n]", " ", span[0]), parts(page)[1])
    for found in LINK.finditer(prose):
        yield Piece(page, prose.count("\n", 0, found.start()) + 1, found[1] or found[2] or found[3])


def check_link(link):
    """A file or folder of this repository, and in it the heading, the id or the line; addresses are not fetched."""
    if re.match(r"[a-z]+:", link.text):
        return
    path, _, anchor = unquote(link.text).partition("#")
    file = link.page.parent / path if path else link.page
    assert file.exists(), f"there is no {path}"
    assert not anchor or anchor in anchors(file), f"{file.name} has no #{anchor}"


def anchors(file):
    """What may stand behind ``#``, as GitHub names it; a heading that comes twice gets a number."""
    text = file.read_text("utf-8")
    ids = set(re.findall(r"""(?:id|name)=["']([^"']+)""", text))
    if file.suffix != ".md":
        return ids | {f"L{number + 1}" for number in range(text.count("\n"))}
    for heading in re.findall(r"^#+\s+(.+?)\s*#*$", parts(file)[1], re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w -]", "", shown).replace(" ", "-")
        ids.add(name if name not in ids else next(f"{name}-{i}" for i in range(1, 99) if f"{name}-{i}" not in ids))
    return ids
