"""Folders whose `.metadata` equals one before them: what is found is what is found without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ema_cli.formats import open_checkpoint
from ema_cli.formats.dcp import metadata
from ema_cli.formats.options import ReadOptions
from tests.formats.alike import outcomes
from tests.formats.dcp_folders import save_folder

W = {"layers.0.weight": torch.arange(6.0).reshape(2, 3), "norm.count": torch.tensor(3)}


def saved(folder: Path, step: int = 7, **tensors: torch.Tensor) -> Path:
    """Return a folder with a model, an optimizer and a step."""
    optimizer = {"state": {name: {"exp_avg": tensor + 5} for name, tensor in W.items()}}
    return save_folder(folder, {"model": {**W, **tensors}, "optimizer": optimizer, "step": step})


def cut(folder: Path) -> None:
    """Cut the shard short."""
    (shard,) = folder.glob("*.distcp")
    os.truncate(shard, shard.stat().st_size // 2)


def remove(folder: Path) -> None:
    """Remove the shard."""
    for shard in folder.glob("*.distcp"):
        shard.unlink()


CHANGES: dict[str, Callable[[Path], object]] = {
    "values": lambda folder: saved(folder, 8, **{"layers.0.weight": torch.zeros(2, 3)}),
    "shape": lambda folder: saved(folder, **{"layers.0.weight": torch.zeros(3, 2)}),
    "type": lambda folder: saved(folder, **{"layers.0.weight": torch.zeros(2, 3, dtype=torch.int32)}),
    "one more": lambda folder: saved(folder, more=torch.ones(2)),
    "cut short": lambda folder: cut(saved(folder)),
    "no shard": lambda folder: remove(saved(folder)),
    "metadata cut": lambda folder: os.truncate(saved(folder) / ".metadata", 300),
}


TENSORS, STORAGE = b"\x8c\x13state_dict_metadata", b"\x8c\x0cstorage_data"
ENDS = {
    "another identity": b"\x8c\x0cstorage_metaNu",
    "something else of its own": b"\x8c\x04more\x8c\x03yes\x8c\x0cstorage_metaNu",
    "and more behind it": b"\x8c\x0cstorage_metaN\x8c\x04more\x8c\x03yesu",
    "other tensors": b"\x8c\x0cstorage_metaN" + TENSORS + b"}u",
    "other places": b"\x8c\x0cstorage_metaN" + STORAGE + b"}u",
    "tensors that are changed": b"\x8c\x0cstorage_metaNu0h\x06(h\x07Nu0h\x03h\x04",
    "what was remembered": b"\x8c\x0cstorage_metah\x06u",
    "no end": b"\x8c\x0cstorage_metaN",
    "too much": b"\x8c\x0cstorage_metaNuN",
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_of_another_kind_is_read_as_by_itself(end: str, tmp_path: Path) -> None:
    """What follows all that is said of the tensors is each file's own, and may say something else of them."""
    first, second = saved(tmp_path / "step-1"), saved(tmp_path / "step-2")
    stored = (second / ".metadata").read_bytes()
    begin = stored.rindex(b"\x8c\x0cstorage_meta")
    (second / ".metadata").write_bytes(stored[:begin] + ENDS[end] + b"b.")
    alone, after = outcomes(first, second)
    assert after == alone
    again, as_before = outcomes(second, first)
    assert as_before == again


@pytest.mark.slow
def test_no_byte_of_metadata_can_be_changed_unseen(tmp_path: Path, full: bool) -> None:
    """With any one byte changed, a reader that knows the file as it was finds what a new one finds; a part of them."""
    first, second = saved(tmp_path / "step-1"), saved(tmp_path / "step-2")
    stored = (second / ".metadata").read_bytes()
    for at in range(0, len(stored), 1 if full else 11):
        (second / ".metadata").write_bytes(stored[:at] + bytes([stored[at] ^ 0x41]) + stored[at + 1 :])
        alone, after = outcomes(first, second)
        assert after == alone, at


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_like_the_one_before_is_read_as_by_itself(change: str, tmp_path: Path) -> None:
    """Whatever differs from the first folder: the same tensors and clocks, or the same error."""
    first = saved(tmp_path / "step-7")
    CHANGES[change](tmp_path / "step-8")
    alone, after = outcomes(first, tmp_path / "step-8")
    assert after == alone


def test_equal_metadata_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of a run have one table; each has an identity of its own in its metadata."""
    parsed = []
    parse = metadata.parse
    monkeypatch.setattr(metadata, "parse", lambda *args: parsed.append(args) or parse(*args))
    for number in range(1, 6):
        saved(tmp_path / f"step-{number}")
    options = ReadOptions()
    opened = [open_checkpoint(tmp_path / f"step-{number}", options).tensors for number in range(1, 6)]
    assert len({(tmp_path / f"step-{number}" / ".metadata").read_bytes() for number in range(1, 6)}) == 5
    assert len(parsed) == 1
    assert opened[0].specs is opened[1].specs
    assert opened[0].pieces is opened[1].pieces


def test_metadata_of_more_than_is_read_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their size, or by how many things they describe; nothing is unpickled."""
    folder = saved(tmp_path / "step-1")
    monkeypatch.setattr(metadata, "unpickle_beginning", None)
    for limit, fact in (("_MAX_BYTES", "bytes; at most 10 are read"), ("_MAX_OBJECTS", "things; at most 10 are read")):
        with monkeypatch.context() as patched:
            patched.setattr(metadata, limit, 10)
            with pytest.raises(Exception, match=fact):
                open_checkpoint(folder)
