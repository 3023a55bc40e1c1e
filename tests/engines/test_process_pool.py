"""Processes that take tasks: how many are started, and when."""

from __future__ import annotations

import os
import threading

import pytest

from ema_cli.engines import process_pool
from ema_cli.engines.process_pool import Processes


def test_no_more_are_started_early_than_have_a_processor(monkeypatch: pytest.MonkeyPatch):
    """Thousands that a user asks for by mistake do not take the machine down; one is started for what is to be done."""
    started: list[int] = []
    early = threading.Event()

    class Counted(process_pool._Process):
        def __init__(self) -> None:
            super().__init__()
            started.append(0)
            early.set()

    monkeypatch.setattr(process_pool, "default_threads", lambda: 1)
    monkeypatch.setattr(process_pool, "_Process", Counted)
    pool = Processes(50)
    assert early.wait(60)
    assert pool.submit(os.getpid).result(60) != os.getpid()
    pool.shutdown()
    assert len(started) <= 2
