"""What people see, piece by piece."""

from __future__ import annotations

import io

import pytest

from ema_cli.cli import stderr, tables
from ema_cli.cli.text_sink import TextSink
from ema_cli.errors import CheckpointError


@pytest.mark.parametrize(("share", "bar"), [(1.0, "\u2588" * 24), (0.5, "\u2588" * 12), (1 / 192, "\u258f"), (0.0, "")])
def test_bars_are_drawn_in_eighths(share: float, bar: str, monkeypatch: pytest.MonkeyPatch):
    """A full share is 24 characters wide; the smallest part drawn is an eighth of one."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert tables.draw_bar(share) == bar


def test_bars_without_unicode(monkeypatch: pytest.MonkeyPatch):
    """Where the terminal has no blocks, a bar is made of number signs."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert tables.draw_bar(0.5) == "#" * 12


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In a log: one line every half minute, with bytes, rate and time left; nothing in between."""
    now = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(stderr.time, "monotonic", lambda: next(now))
    with TextSink().progress("averaging") as report:
        for done in (1, 31, 40, 62):
            report(done * 10**6, 124 * 10**6)
    assert capsys.readouterr().err.splitlines() == [
        "averaging: 31 MB of 124 MB, 1 MB/s, 93 s left",
        "averaging: 62 MB of 124 MB, 1 MB/s, 62 s left",
    ]


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]):
    """With --quiet and --json there is no progress at all."""
    with TextSink(quiet=True).progress("averaging") as report:
        report(1, 2)
    assert capsys.readouterr().err == ""


def test_an_error_is_a_line_and_a_hint(capsys: pytest.CaptureFixture[str]):
    """However long, the error stays on one line of a pipe; markup in it is text."""
    stderr.error(CheckpointError("a.pt: [bold]" + "x" * 300, hint="do[/x] this"))
    assert capsys.readouterr().err == "error: a.pt: [bold]" + "x" * 300 + "\nhint:  do[/x] this\n"
