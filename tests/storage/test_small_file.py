"""Small files are written as a whole, over what is there, and read up to a size that they may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ema_cli.errors import CheckpointError, OutputError
from ema_cli.storage.small_file import read_small_file, write_small_file


def test_a_file_takes_the_place_of_what_is_there(tmp_path: Path):
    """Who has the older one open still reads that, and nothing stays beside the new one."""
    path = tmp_path / "note.json"
    path.write_text("older, and longer")
    with path.open() as older:
        write_small_file(path, "new")
        assert older.read() == "older, and longer"
    assert read_small_file(path, 3) == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.json"]


def test_what_cannot_be_written_is_an_error_with_its_name(tmp_path: Path):
    """The folder is not there."""
    with pytest.raises(OutputError) as raised:
        write_small_file(tmp_path / "gone" / "note.json", "new")
    assert raised.value.subject == tmp_path / "gone" / "note.json"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    """The error says how many bytes it has, and how many may be read."""
    (tmp_path / "note.json").write_text("four")
    with pytest.raises(CheckpointError, match="4 bytes are too many for this file; at most 3 are read"):
        read_small_file(tmp_path / "note.json", 3)
