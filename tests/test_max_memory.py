"""How much memory is taken, and how much is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ema_cli.errors import UsageError
from ema_cli.system import memory
from ema_cli.text import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("200MB", 200 * 10**6), ("1GiB", 1 << 30), ("1.5 kB", 1500), ("512KiB", 1 << 19), ("7b", 7), ("2tb", 2 * 10**12)],
)
def test_sizes_are_decimal_and_binary(text: str, nbytes: int):
    """As people write them, in any case."""
    assert parse_size(text, "max_memory") == nbytes


@pytest.mark.parametrize("text", ["", "200", "MB", "-1MB", "1e3MB", "1PB", "1 M B", "infMB", "1MBps", "\u0661MB"])
def test_a_number_without_a_unit_is_no_size(text: str):
    """A bare number, too: bytes or megabytes?"""
    with pytest.raises(UsageError, match=r"max_memory=: .* is not a size") as raised:
        parse_size(text, "max_memory")
    assert raised.value.hint


@pytest.mark.slow
def test_the_peak_is_this_process_s_own():
    """Not what the process had that started it, which getrusage tells on Linux."""
    ballast = bytearray(300 << 20)
    script = "from ema_cli.system import memory; print(memory.peak_bytes())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 5e6 < int(done.stdout) < len(ballast) <= memory.peak_bytes()


def test_without_proc_the_peak_is_what_the_system_tells(monkeypatch: pytest.MonkeyPatch):
    """In kibibytes, but on macOS in bytes."""

    def fail(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    usage = type("Usage", (), {"ru_maxrss": 70_000})
    monkeypatch.setattr(memory.resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(sys, "platform", "linux")
    assert memory.peak_bytes() == 70_000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak_bytes() == 70_000
