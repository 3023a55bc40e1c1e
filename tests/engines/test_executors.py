"""Executors of the caller's own that take no tasks, or no more of them; and what is kept after an error."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from ema_cli.averaging import average, perform
from ema_cli.engines.engine import Engine, EngineError
from ema_cli.engines.part import Part
from ema_cli.errors import OutputError, UsageError
from ema_cli.planning.plan import Plan
from ema_cli.preparing import prepare
from ema_cli.storage.names import StorePath
from ema_cli.writing.target import parse_target
from tests.engines.lost import Wrapped
from tests.engines.runs import RUNS
from tests.engines.test_equal_bytes import plans
from tests.engines.test_parts import hidden, make
from tests.engines.test_stores import bucket, prepared, present, put_run

__all__ = ["bucket"]  # a fixture
pytestmark = pytest.mark.usefixtures("small_tasks")


@pytest.fixture
def made(tmp_path: Path) -> list[Plan]:
    return plans(RUNS["one file"](tmp_path / "one file"), "200ba")


@pytest.mark.parametrize("executor", ["processes=2", 4, ThreadPoolExecutor])
def test_what_is_no_executor(made: list[Plan], tmp_path: Path, executor: object):
    """An error before anything is read; the name of an engine is for the command line."""
    with pytest.raises(UsageError, match="is no executor") as caught:
        average(made, tmp_path / "x.safetensors", executor=executor)  # type: ignore[arg-type]
    assert caught.value.hint == "give one of concurrent.futures, as ProcessPoolExecutor(8)"
    assert hidden(tmp_path) == []


def test_a_pool_that_was_shut_down(made: list[Plan], tmp_path: Path):
    """An error that says so; as nothing was made, nothing is left."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(EngineError, match="takes no more tasks: cannot schedule new futures after shutdown"):
        average(made, tmp_path / "x.safetensors", executor=pool)
    assert hidden(tmp_path) == []


def test_a_pool_that_was_shut_down_meanwhile(made: list[Plan], tmp_path: Path):
    """It cancels what waits, and tells nobody who waits for that: an error all the same. What is finished stays."""
    pool = ThreadPoolExecutor(1)

    def shut_down(done: int, total: int) -> None:
        if done:
            pool.shutdown(wait=False, cancel_futures=True)

    with pytest.raises(EngineError, match="takes no more tasks"):
        average(made, tmp_path / "x.safetensors", executor=pool, progress=shut_down)
    assert len(hidden(tmp_path)) == 1
    with ThreadPoolExecutor(1) as another:
        result = average(made, tmp_path / "x.safetensors", executor=another)
    assert result.bytes_read < average(made, tmp_path / "alone.safetensors").bytes_read
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    assert hidden(tmp_path) == []


def refuse(*_: object) -> None:
    raise OutputError("is full", subject="disk")


def test_what_parts_have_made_outlives_an_engine_that_fails(made: list[Plan], tmp_path: Path, executor: Executor):
    """And one that is interrupted: the parts go on with it. Where no part was begun, nothing is left."""
    make(made, tmp_path / "x.safetensors", Part(0, 2))
    for name in ("x.safetensors", "y.safetensors"):
        job = prepare(made, parse_target(tmp_path / name), force=False)
        with pytest.raises(OutputError, match="is full"):
            perform(job, by=Engine("x", Wrapped(executor, refuse)))
        assert len(hidden(tmp_path)) == 1
    assert make(made, tmp_path / "x.safetensors", Part(0, 2)).bytes_read == 0
    last = make(made, tmp_path / "x.safetensors", Part(1, 2))
    assert last.part is not None
    assert last.part.published
    assert hidden(tmp_path) == []


def test_and_so_it_is_in_a_store(bucket: StorePath, tmp_path: Path, executor: Executor):
    """Where what the parts have made lies beside the output."""
    made = put_run(bucket / "run", tmp_path)
    perform(prepared(made, bucket / "out", 600), by=Part(0, 2))
    with pytest.raises(OutputError, match="is full"):
        perform(prepared(made, bucket / "out", 600), by=Engine("x", Wrapped(executor, refuse)))
    assert perform(prepared(made, bucket / "out", 600), by=Part(0, 2)).bytes_read == 0
    last = perform(prepared(made, bucket / "out", 600), by=Part(1, 2))
    assert last.part is not None
    assert last.part.published
    assert not any("parts-" in name for name in present(bucket / "out"))
