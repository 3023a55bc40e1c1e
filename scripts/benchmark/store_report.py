"""What was measured of stores as Markdown, and the parts of docs/ that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .report import details, head, targets

BEGIN, END = "<!-- Made by `make bench-store-pages`. -->", "<!-- Until here. -->"
PAGES = {"figures": Path("docs", "benchmarks.md"), "targets": Path("docs", "developers", "targets.md")}
_NOTES = """\
- The store is SeaweedFS, on the same processors: what it takes for a reader is not in that one's CPU.
- Every run is a whole process, or all that read side by side. A round runs every command once, in an order that
  rotates. Figures are medians of the rounds that count, least and greatest in parentheses; ratios are taken within a
  round. A round in which others take more than a tenth of the processors does not count, and is repeated.
- ema-cli averages what it reads, and waits until the average is on the disk; the readers keep nothing.
- Memory is that of a run that is not timed: all processes together, looked at every 10 ms.
"""


def markdown(found: Mapping[str, Any]) -> str:
    """Return the whole report."""
    return "\n".join(["## From a store\n", figures(found), "## Targets\n", targets(found, rows(found))])


def rows(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what was measured, the near store first."""
    return [found["rows"][link] for link in ("near", "far") if link in found["rows"]]


def figures(found: Mapping[str, Any]) -> str:
    """Return machine, versions, and all figures."""
    return "\n".join([head(found, rows(found)), _NOTES, *map(details, rows(found))])


def fill_pages(root: Path, found: Mapping[str, Any]) -> list[Path]:
    """Put the report into the pages, in the place of what stood there, and return their paths."""
    parts = {"figures": figures(found), "targets": targets(found, rows(found))}
    for name, page in PAGES.items():
        path = root / page
        path.write_text(fill(path.read_text("utf-8"), parts[name]), "utf-8")
    return list(PAGES.values())


def fill(page: str, part: str) -> str:
    """Return a page with another part between the marks."""
    before, rest = page.split(BEGIN)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n\n{part.strip()}\n\n{END}{after}"
