"""Lines on stderr: errors, warnings, progress."""

from __future__ import annotations

import io
import sys

import pytest

from ema_cli.cli import stderr
from ema_cli.cli.text_printer import TextPrinter
from ema_cli.errors import CheckpointError


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In a log: one line every half minute, with bytes, rate and time left; nothing in between."""
    now = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(stderr.time, "monotonic", lambda: next(now))
    with TextPrinter("average").progress("averaging") as report:
        for done in (1, 31, 40, 62):
            report(done * 10**6, 124 * 10**6)
    assert capsys.readouterr().err.splitlines() == [
        "averaging: 31 MB of 124 MB, 1 MB/s, 93 s left",
        "averaging: 62 MB of 124 MB, 1 MB/s, 62 s left",
    ]


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]):
    """With --quiet and --json there is no progress at all."""
    with TextPrinter("average", quiet=True).progress("averaging") as report:
        report(1, 2)
    assert capsys.readouterr().err == ""


def test_an_error_is_a_line_and_a_hint(capsys: pytest.CaptureFixture[str]):
    """However long, the error stays on one line of a pipe; markup in it is text."""
    stderr.error(CheckpointError("a.pt: [bold]" + "x" * 300, hint="do[/x] this"), "average")
    assert capsys.readouterr().err == "error: a.pt: [bold]" + "x" * 300 + "\nhint:  do[/x] this\n"


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "label"),
    [
        ({}, "\x1b[33mwarning: \x1b[0m"),
        ({"NO_COLOR": "1"}, "warning: "),
        ({"TERM": "dumb"}, "warning: "),
        ({"FORCE_COLOR": ""}, "warning: "),
    ],
    ids=str,
)
def test_a_label_is_coloured_where_a_terminal_can_show_it(
    variables: dict[str, str], label: str, monkeypatch: pytest.MonkeyPatch
):
    """Yellow on a terminal, text where it has no colours or none are wanted."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    stderr.warnings(["careful"])
    assert sys.stderr.getvalue() == f"{label}careful\n"  # type: ignore[attr-defined]


def test_a_bar_comes_with_what_takes_a_while(monkeypatch: pytest.MonkeyPatch):
    """On a terminal a short average shows no bar, and does not load what draws one."""
    now = iter([0.0, 0.1])
    monkeypatch.setattr(stderr.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with stderr.progress("averaging") as report:
        report(1, 3)
        assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
