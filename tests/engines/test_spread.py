"""An averaging by an engine's workers, as the one who asks sees it: progress, its lease, and a second one beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ema_cli.averaging import perform
from ema_cli.engines import workplace
from ema_cli.engines.engine import Engine
from ema_cli.engines.opening import open_engine
from ema_cli.engines.tasks import Task
from ema_cli.engines.work import pack, unpack
from ema_cli.errors import OutputError
from ema_cli.job import Job
from ema_cli.preparing import prepare
from ema_cli.storage import lease
from ema_cli.storage.lease import Held, LeaseLost, Watch
from ema_cli.writing.target import parse_target
from tests.engines.lost import Wrapped
from tests.engines.runs import RUNS, files_below
from tests.engines.test_equal_bytes import plans

pytestmark = pytest.mark.usefixtures("small_tasks")


def prepared(folder: Path) -> Job:
    """Return the job of one file, in `folder/out`."""
    if not (folder / "one file").exists():
        RUNS["one file"](folder / "one file")
        (folder / "out").mkdir()
    return prepare(plans(folder / "one file", "200ba"), parse_target(folder / "out" / "x.safetensors"), force=False)


@pytest.mark.parametrize("is_here", [True, False])
def test_progress_never_goes_back_and_ends_with_all(tmp_path: Path, executor: Executor, is_here: bool):
    """As on one machine: so the time left can be told."""
    told: list[tuple[int, int]] = []
    job = prepared(tmp_path)
    result = perform(
        job, by=Engine("x", executor, is_here=is_here), progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (result.bytes_read, job.bytes_to_read)
    assert result.bytes_read == job.bytes_to_read
    assert told == sorted(told)


def test_a_second_run_of_the_same_average(tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch):
    """It ends with exit 5, and disturbs nothing of the first, which goes on."""
    monkeypatch.setattr(lease, "_RENEWED_SHARE", 1 / 1200)  # each twentieth of a second
    monkeypatch.setattr(lease, "_LOOK_SHARE", 1 / 6000)
    refused: list[Held] = []

    def begin_another(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(Held, match="another run is making the same average here") as caught:
                perform(prepared(tmp_path), by=Engine("x", executor))
            refused.append(caught.value)

    perform(prepared(tmp_path), by=Engine("x", executor), progress=begin_another)
    assert refused[0].exit_code == 5
    assert str(refused[0].subject).endswith("x.safetensors"), "as the user knows it"
    names = set(files_below(tmp_path / "out"))
    assert names == {"x.safetensors", "x.safetensors.manifest.json", "x.safetensors.sha256"}


def test_a_worker_looks_for_the_lease_at_each_block(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
):
    """Once it is gone, the next block is not made."""
    monkeypatch.setattr(lease, "_LOOK_SHARE", 0.0)
    looked, one_at_a_time = list[bool](), threading.Lock()

    class Counting(Watch):
        def check(self, owner: str) -> None:
            with one_at_a_time:
                if len(looked) == 3:  # before the task, and two of its blocks; of two tasks, in any order
                    self._path.unlink()
                looked.append(self._path.exists())
            super().check(owner)

    monkeypatch.setattr(workplace, "Watch", Counting)

    def in_small_blocks(function: Callable[..., Any], wanted: dict[str, str], packed: bytes, task: Task) -> Any:
        (work,) = unpack(packed)
        small = replace(work, sizes=replace(work.sizes, threads=1, most_workers=1, row_bytes=64, stretch=1))
        with pytest.raises(LeaseLost, match="the one for whom it was made is gone") as caught:
            function(wanted, pack(small), task)
        raise caught.value

    one = Wrapped(executor, in_small_blocks)
    with pytest.raises(Held, match="another run went on with it"):
        perform(prepared(tmp_path), by=Engine("x", one))
    assert looked[:4] == [True, True, True, False]
    assert not (tmp_path / "out" / "x.safetensors").exists()


def test_own_workers_end_before_what_they_made_is_removed(tmp_path: Path, executor: Executor):
    """After an error: what one of them put later nobody would remove. Once all is published they may live on."""
    seen: list[bool] = []
    stop = lambda: seen.append(any((tmp_path / "out").glob(".ema-cli-parts-*")))  # noqa: E731

    def fail(*_: object) -> None:
        raise OutputError("this is a test", subject=tmp_path)

    with pytest.raises(OutputError, match="this is a test"):
        perform(prepared(tmp_path), by=Engine("x", Wrapped(executor, fail), is_here=True, stop=stop))
    assert seen == [True]
    assert files_below(tmp_path / "out") == {}
    perform(prepared(tmp_path), by=Engine("x", executor, is_here=True, stop=stop))
    assert seen == [True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes=2", "dask:local=2"])
def test_engines_of_this_machine_can_be_stopped(name: str):
    """Twice: after an error by the one who asks, at the end by the one who opened it. Then nobody takes a task."""
    pytest.importorskip("distributed")
    with open_engine(name) as engine:
        assert engine.stop is not None
        assert engine.executor.submit(abs, -1).result() == 1
        engine.stop()
        engine.stop()
        with pytest.raises(Exception, match=r"ended|closed"):
            engine.executor.submit(abs, -1).result()
