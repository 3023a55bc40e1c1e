"""The same is done for several places: on a disk when it is asked for, in a store ahead and side by side."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ema_cli.storage.names import StorePath
from ema_cli.storage.side_by_side import side_by_side


def test_on_a_disk_nothing_is_done_ahead():
    """Each call does its own work."""
    done: list[Path] = []
    calls = side_by_side(done.append, [Path("a"), Path("b")])
    next(calls)()
    assert done == [Path("a")]


def test_in_a_store_several_are_waited_for_at_once():
    """Each waits until all have begun; results come in order, whatever ends first."""
    paths = [StorePath(f"s3://bucket/{number}") for number in range(8)]
    all_began = threading.Barrier(len(paths), timeout=30)

    def work(path: StorePath) -> str:
        all_began.wait()
        return path.name

    assert [call() for call in side_by_side(work, paths)] == [path.name for path in paths]


def test_an_error_is_raised_where_its_result_is_asked_for():
    """The others are given out all the same, also where there are more than threads."""
    paths = [StorePath(f"s3://bucket/{number}") for number in range(100)]

    def work(path: StorePath) -> str:
        if path.name == "5":
            raise OSError("no")
        return path.name

    for path, call in zip(paths, side_by_side(work, paths), strict=True):
        if path.name == "5":
            with pytest.raises(OSError, match="no"):
                call()
        else:
            assert call() == path.name
