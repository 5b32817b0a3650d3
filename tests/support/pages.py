"""The pages of the documentation, as markdown-it reads them."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers import REPO
from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.rglob("*.md"))]
SETUP = "<!-- test: setup\n"
_MARKDOWN = MarkdownIt("commonmark").enable("table")


class Block(NamedTuple):
    """A block of code; ``setup`` is the language of one that readers do not see."""

    language: str
    text: str
    line: int  # of the opening fence, from 1


def read(page: Path) -> list[Token]:
    return _MARKDOWN.parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    found = []
    for token in read(page):
        line = (token.map or [0])[0] + 1
        if token.type == "fence":
            found.append(Block(token.info.strip(), token.content, line))
        elif token.type == "html_block" and token.content.startswith(SETUP):
            code = token.content.removeprefix(SETUP).strip().removesuffix("-->")
            found.append(Block("setup", code, line))
    return found


def table_rows(page: Path) -> list[list[str]]:
    """The cells of each row of each table, as they are written."""
    rows: list[list[str]] = []
    tokens = read(page)
    for token, inside in itertools.pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(inside.content)
    return rows


def headings(page: Path) -> list[str]:
    tokens = read(page)
    pairs = itertools.pairwise(tokens)
    return [inside.content for token, inside in pairs if token.type == "heading_open"]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings(page)}


def section(page: Path, title: str) -> str:
    """The text under a heading of the second level."""
    parts = re.split(r"^## (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def links(page: Path) -> Iterator[str]:
    """What a page's links and images point to."""
    for token in read(page):
        for child in token.children or ():
            if child.type in ("link_open", "image"):
                yield str(child.attrs.get("href") or child.attrs.get("src"))
