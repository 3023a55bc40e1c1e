"""Small tasks, and an executor that needs no other process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from ema_cli.engines import task_checksums, tasks
from ema_cli.storage import checksums
from tests.storage.conftest import folder, proxy, seaweed

__all__ = ["folder", "proxy", "seaweed"]  # fixtures


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into tasks of some kilobytes, as else only large models are cut."""
    monkeypatch.setattr(tasks, "_LEAST_BYTES", 1024)
    monkeypatch.setattr(tasks, "_ALIGNED_BYTES", 64)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum up what is read by blocks of so few bytes that most begin in one task and end in another."""
    monkeypatch.setattr(task_checksums, "BLOCK_BYTES", 700)
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 700)


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Two threads of this process, which take tasks as any worker does."""
    with ThreadPoolExecutor(2) as pool:
        yield pool
