"""The pages for people, cut into their parts: fenced blocks, tables, headings, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
]

_FENCE = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str


def name_of(page: Path) -> str:
    """Return a page's path below the root, as tests are named."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [Block(*match.groups()) for match in _FENCE.finditer(page.read_text("utf-8"))]


def without_blocks(page: Path) -> str:
    """Return a page's text without its fenced blocks and its code spans."""
    return re.sub(r"`[^`\n]*`", "``", _FENCE.sub("", page.read_text("utf-8")))


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return [link or picture for link, picture in _LINK.findall(without_blocks(page))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    made: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text("utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = sum(1 for other in made if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other))
        made.add(f"{anchor}-{count}" if count else anchor)
    return made


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table whose first heading is `heading`, without code marks."""
    text = page.read_text("utf-8")
    lines = text[text.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("| ").split(" | ")] for line in lines]
