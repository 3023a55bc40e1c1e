"""Tables and bars, piece by piece."""

from __future__ import annotations

import io

import pytest

from ema_cli.cli import tables


@pytest.mark.parametrize(("share", "bar"), [(1.0, "\u2588" * 24), (0.5, "\u2588" * 12), (1 / 192, "\u258f"), (0.0, "")])
def test_bars_are_drawn_in_eighths(share: float, bar: str, monkeypatch: pytest.MonkeyPatch):
    """A full share is 24 characters wide; the smallest part drawn is an eighth of one."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert tables.draw_bar(share) == bar


def test_bars_without_unicode(monkeypatch: pytest.MonkeyPatch):
    """Where the terminal has no blocks, a bar is made of number signs."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert tables.draw_bar(0.5) == "#" * 12
