"""Tables and bars, piece by piece."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

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


@pytest.mark.parametrize("averages", [1, 2])
def test_long_names_leave_room_for_bars_at_80_columns(averages: int, monkeypatch: pytest.MonkeyPatch):
    """Lightning puts metrics into its names: these fold, and each weight is drawn all the same."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    names = [f"epoch={n:02d}-step={n}2345-val_loss=0.1234567-val_accuracy=0.7654321.ckpt" for n in range(4)]
    columns = {"batch": ["12345"] * 4, "epoch": ["1"] * 4}
    weights = [tables.Weights(f"{n}0000ba", dict.fromkeys(names, 0.25), {}) for n in range(averages)]
    printed = io.StringIO()
    tables.print_weights(Console(file=printed, width=80), names, columns, weights)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.count("\u2588" * 4) > 0 for line in lines].count(True) == 4
    assert all("25.0" in line and line.count("%") == averages for line in lines if "\u2588" in line)
    assert "".join(line[:24].strip() for line in lines[1:] if line.strip()).startswith(names[0][:24])


def test_lines_in_a_pipe_end_with_what_they_show():
    """The last column is not filled with blanks where a program or a page takes the lines."""
    printed = io.StringIO()
    weights = tables.Weights("10ba", {"a": 0.75, "b": 0.25}, {})
    tables.print_weights(Console(file=printed, width=240), ["a", "b"], {"batch": ["1", "2"]}, [weights])
    heading, *rows = printed.getvalue().splitlines()
    assert heading == "checkpoint  batch  weight"
    assert len(rows) == 2
    assert all(row == row.rstrip() for row in rows)
