"""A system that has no more threads to give."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ema_cli.errors import EmaError, at_terminal
from ema_cli.formats.safetensors.writer import lay_out_file
from ema_cli.manifest.fingerprint import fingerprints
from ema_cli.storage.output_stream import OutputStream
from ema_cli.system.threads import thread_errors
from ema_cli.writing.files import finish_files
from tests.folding.in_memory import checkpoint


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread be started."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.usefixtures("no_threads")
def test_a_thread_that_cannot_be_started_is_an_error_with_a_hint():
    """The error says what the system said, and how to ask for fewer threads."""
    with pytest.raises(EmaError) as raised, thread_errors(), ThreadPoolExecutor(1) as pool:
        pool.submit(print)
    assert raised.value.fact == "no thread can be started: can't start new thread"
    assert raised.value.advice(at_terminal) == "use fewer --threads"


@pytest.mark.usefixtures("no_threads")
def test_fingerprints_and_sums_without_threads_are_that_error(tmp_path: Path):
    """Where fingerprints are taken, or outputs summed up, it is the same error, and no traceback."""
    with pytest.raises(EmaError, match="no thread can be started"):
        fingerprints([checkpoint({"w": torch.ones(2)})], threads=2)
    with pytest.raises(EmaError, match="no thread can be started"):
        finish_files([(lay_out_file("x", {}, {}), OutputStream(tmp_path / "x"))], threads=2)
