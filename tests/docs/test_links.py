"""Every link on a page leads to something that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, README, ROOT, anchors, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    """A link names a file of the repository and, after `#`, one of its headings."""
    for link in links(page):
        if link.startswith(("https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.is_relative_to(ROOT), link
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def test_every_page_is_reached_from_the_readme() -> None:
    """By links alone, in any number of steps: no page is lost."""
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if "://" not in link]
        waiting += [target for target in targets if target.suffix == ".md"]
    assert set(DOCS.rglob("*.md")) <= seen


def test_every_picture_is_shown_on_a_page() -> None:
    """A picture that no page shows is litter."""
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert set((DOCS / "pictures").iterdir()) <= shown
