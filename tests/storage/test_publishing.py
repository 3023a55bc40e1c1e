"""A single file is in place as a whole, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from ema_cli.errors import OutputError
from ema_cli.storage.output_stream import WrittenFile, new_file, write_file
from ema_cli.storage.publishing import stage_file

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_staged_file_is_in_place_when_the_block_ends(tmp_path: Path):
    """Until then nothing has its name, and no other file remains."""
    path = tmp_path / "page.html"
    with stage_file(path, force=False) as stream:
        stream.write(0, b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path):
    """Whatever goes wrong, what was there stays as it was."""
    path = tmp_path / "page.html"
    path.write_bytes(b"old")
    with suppress(ZeroDivisionError), stage_file(path, force=True) as stream:
        stream.write(0, b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_with_force_alone(tmp_path: Path):
    """Without it, the file that is there stays."""
    path = tmp_path / "page.html"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"), stage_file(path, force=False) as stream:
        stream.write(0, b"new")
    assert path.read_bytes() == b"old"
    with stage_file(path, force=True) as stream:
        stream.write(0, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_is_on_the_disk_before_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is synced where all went well, and closed in any case."""
    calls = []
    for call in ("fsync", "close"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda number, call=call, real=real: (calls.append(call), real(number)))
    with new_file(tmp_path / "a") as stream:
        stream.write(0, b"x")
    assert calls == ["fsync", "close"]
    calls.clear()
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "b"):
        raise ZeroDivisionError
    assert calls == ["close"]


def test_a_file_written_in_blocks_tells_its_size_and_its_sum(tmp_path: Path):
    """As `sha256sum` gives it."""
    assert write_file(tmp_path / "a", [b"a", b"", b"bc"]) == WrittenFile(3, SHA256_OF_ABC)
    assert (tmp_path / "a").read_bytes() == b"abc"
