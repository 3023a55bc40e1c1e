"""How much of the processors is idle."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ema_cli.system import processors
from ema_cli.system.processors import idle_seconds


def test_idle_time_grows_by_no_more_than_all_processors_have():
    """In seconds, of all processors together, as Linux counts it."""
    if not Path("/proc/stat").exists():
        pytest.skip("the system does not say")
    began, before = time.monotonic(), idle_seconds()
    time.sleep(0.3)
    after, elapsed = idle_seconds(), time.monotonic() - began
    assert before is not None
    assert after is not None
    assert 0 <= after - before <= (elapsed + 0.1) * (Path("/proc/stat").read_text().count("\ncpu") + 1)


def test_where_the_system_does_not_say_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Other systems have no such file, or another one."""
    monkeypatch.setattr(processors, "_STAT", tmp_path / "stat")
    assert idle_seconds() is None
    (tmp_path / "stat").write_text("cpu 1 2\n")
    assert idle_seconds() is None
    (tmp_path / "stat").write_text("cpu  10 20 30 400 50 6\ncpu0 1 2 3 4 5 6\n")
    assert idle_seconds() == pytest.approx(450 / processors.os.sysconf("SC_CLK_TCK"))
