"""Folders whose `.metadata` equals one before them: what is found is what is found without it."""

from __future__ import annotations

import os
import shutil
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


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_like_the_one_before_is_read_as_by_itself(change: str, tmp_path: Path) -> None:
    """Whatever differs from the first folder: the same tensors and clocks, or the same error."""
    first = saved(tmp_path / "step-7")
    CHANGES[change](tmp_path / "step-8")
    alone, after = outcomes(first, tmp_path / "step-8")
    assert after == alone


def test_equal_metadata_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten folders of a run have one table."""
    parsed = []
    parse = metadata._parse
    monkeypatch.setattr(metadata, "_parse", lambda *args: parsed.append(args) or parse(*args))
    shutil.copytree(saved(tmp_path / "step-1"), tmp_path / "step-2")
    options = ReadOptions()
    opened = [open_checkpoint(tmp_path / name, options).tensors for name in ("step-1", "step-2")]
    assert len(parsed) == 1
    assert opened[0].specs is opened[1].specs
    assert opened[0].pieces is opened[1].pieces


def test_metadata_of_more_than_is_read_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their size, or by how many things they describe; nothing is unpickled."""
    folder = saved(tmp_path / "step-1")
    monkeypatch.setattr(metadata, "unpickle", None)
    for limit, fact in (("_MAX_BYTES", "bytes; at most 10 are read"), ("_MAX_OBJECTS", "things; at most 10 are read")):
        with monkeypatch.context() as patched:
            patched.setattr(metadata, limit, 10)
            with pytest.raises(Exception, match=fact):
                open_checkpoint(folder)
