"""A file that is written by range, from several threads."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ema_cli.storage import output_stream
from ema_cli.storage.output_stream import OutputStream, write_file

PART = bytes(range(256)) * 4096  # 1 MiB


def test_the_disk_begins_to_write_long_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of 40 MiB in parts of 1 MiB it is asked after 16 and after 32; small files are left to the fsync."""
    asked: list[int] = []
    monkeypatch.setattr(output_stream, "_start_writing", asked.append)
    write_file(tmp_path / "small", [PART] * 15)
    assert not asked
    stream = OutputStream(tmp_path / "large")
    for number in range(40):
        stream.write((39 - number) * len(PART), PART)
        assert len(asked) == (number + 1) // 16
    stream.close()


def test_where_the_system_cannot_begin_early_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither a refusal nor a C library without such a call shows."""
    monkeypatch.setattr(output_stream, "_UNSYNCED_BYTES", 1)
    whole = write_file(tmp_path / "usual", [PART, PART])
    output_stream._start_writing(os.open(tmp_path, os.O_RDONLY))  # a folder is refused
    monkeypatch.setattr(output_stream, "_sync_file_range", lambda: None)
    assert write_file(tmp_path / "plain", [PART, PART]) == whole
    assert whole.sha256 == hashlib.sha256(PART * 2).hexdigest()
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "usual").read_bytes() == PART * 2


def test_of_a_file_that_will_be_removed_soon_the_disk_is_asked_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither while it is written nor in the end; any other is waited for."""
    asked: list[int] = []
    monkeypatch.setattr(output_stream, "_start_writing", asked.append)
    monkeypatch.setattr(output_stream.os, "fsync", asked.append)
    write_file(tmp_path / "x", [PART] * 20, summed=False, synced=False)
    assert not asked
    assert (tmp_path / "x").read_bytes() == PART * 20
    write_file(tmp_path / "y", [PART] * 20)
    assert len(asked) == 2


def test_small_blocks_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A thousand words of a text are one call to the system; a large block between them is written as it is."""
    calls: list[int] = []
    pwrite = os.pwrite
    monkeypatch.setattr(
        output_stream.os, "pwrite", lambda file, data, at: calls.append(len(data)) or pwrite(file, data, at)
    )
    words = [b"word%d " % number for number in range(1000)]
    text = b"".join(words)
    written = write_file(tmp_path / "text", words)
    assert (calls, written.size) == ([len(text)], len(text))
    whole = text + PART + text
    written = write_file(tmp_path / "both", [*words, PART, *words])
    assert (tmp_path / "both").read_bytes() == whole
    assert (written.size, written.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())


def test_a_file_that_is_not_summed_has_no_sum(tmp_path: Path):
    """It is empty."""
    stream = OutputStream(tmp_path / "x", summed=False)
    stream.write(0, PART)
    assert stream.sha256() == ""
    stream.close()


def test_a_large_range_is_written_in_parts_and_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No part crosses a multiple of 128 KiB of the file, none waits in the system for another, and nothing is lost."""
    real, writing, places = os.pwrite, threading.Lock(), []

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        assert writing.acquire(blocking=False)
        places.append((position, len(data)))
        written = real(descriptor, data, position)
        writing.release()
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    stream = OutputStream(tmp_path / "x")
    ranges = [(100 + number * len(PART), PART) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: stream.write(*one), [(0, PART[:100]), *ranges]))
    stream.close()
    assert (tmp_path / "x").read_bytes() == PART[:100] + PART * 8
    assert {begin // 131072 - (begin + size - 1) // 131072 for begin, size in places} == {0}
    assert len(places) == 1 + 8 * 9
