"""What files were that were read before: kept by class and key, within a bound, and no longer than a run is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ema_cli.formats import before as module
from ema_cli.formats.before import Before
from ema_cli.formats.torch_save.file import open_torch
from ema_cli.runs.options import OpenOptions
from ema_cli.runs.run import read_run


def test_a_value_is_kept_under_its_class_and_a_key() -> None:
    """Another class, or another key, has another value; the second under one key takes the place of the first."""
    before = Before()
    before.keep("a", 1, 8)
    before.keep("a", "text", 8)
    before.keep("a", 2, 8)
    assert (before.get(int, "a"), before.get(str, "a"), before.get(int, "b"), before.get(float, "a")) == (
        2,
        "text",
        None,
        None,
    )
    assert before.one(list, list, 8) is before.one(list, list, 8)
    before.clear()
    assert before.get(int, "a") is None


def test_what_was_used_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many bytes are kept, besides one value that alone takes more: no small one drives it out."""
    monkeypatch.setattr(module, "_MOST_BYTES", 30)
    before = Before()
    for number in range(3):
        before.keep(number, number, 10)
    assert before.get(int, 0) == 0
    before.keep(3, 3, 10)
    assert [before.get(int, number) for number in range(4)] == [0, None, 2, 3]
    before.keep(4, 4, 31)
    before.keep(5, 5, 1)
    assert [before.get(int, number) for number in range(6)] == [None, None, 2, 3, 4, 5]
    before.keep(6, 6, 32)
    assert [before.get(int, number) for number in range(7)] == [None, None, None, None, None, 5, 6]


def test_nothing_is_kept_of_a_run_that_is_open(tmp_path: Path) -> None:
    """The options with which a run was opened hold nothing of its files."""
    for step in (1, 2):
        torch.save({"w": torch.ones(2)}, tmp_path / f"step-{step}.pt")
    options = OpenOptions()
    assert len(read_run([tmp_path], options).checkpoints) == 2
    assert not options.read.before._kept


def test_what_is_read_once_more_stays(tmp_path: Path) -> None:
    """An average in the form of its input reads the newest file's description again: it is there, then gone."""
    for step in (1, 2):
        torch.save({"model": {"w": torch.ones(3)}, "step": step}, tmp_path / f"step-{step}.pt")
    options = OpenOptions()
    options.read.before.stay()
    newest = read_run([tmp_path], options).checkpoints[-1]
    names = set[str]()
    opened = open_torch(newest.files[0], options.read.before, names)
    assert opened.root is open_torch(newest.files[0], options.read.before).root
    assert "torch._utils._rebuild_tensor_v2" in names
    options.read.before.clear()
    assert opened.root is not open_torch(newest.files[0], options.read.before).root
