"""A run that stood still for so long that another one took its place: it ends, and takes nothing from that one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ema_cli.averaging import perform
from ema_cli.engines.engine import Engine
from ema_cli.engines.tasks import Task
from ema_cli.preparing import prepare
from ema_cli.storage.lease import Held
from ema_cli.storage.names import StorePath
from ema_cli.storage.store import claim, claim_watch
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import parse_target
from tests.engines.lost import Wrapped
from tests.engines.runs import RUNS, files_below
from tests.engines.test_equal_bytes import plans
from tests.engines.test_stores import present, put_run
from tests.storage.stores import put

pytestmark = pytest.mark.usefixtures("small_tasks")
OTHER = b'{"owner": "another"}'


def calls(before: Callable[[], object], number: int) -> Callable[..., Any]:
    """Return what does tasks, and calls `before` ahead of one of them."""
    numbers = count()

    def do(function: Callable[..., Any], *arguments: Any) -> Any:
        if next(numbers) == number:
            before()
        return function(*arguments)

    return do


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("is_here", [True, False])
def test_in_a_folder(tmp_path: Path, executor: Executor, number: int, is_here: bool):
    """What lies in the hidden folder is the other one's: it stays. The error says so, whoever saw it first."""
    made = plans(RUNS["one file"](tmp_path / "run"), "200ba")
    (tmp_path / "out").mkdir()

    def take() -> None:
        (lease,) = (tmp_path / "out").glob(".ema-cli-parts-*/.tasks/publishing")
        lease.write_bytes(OTHER)

    job = prepare(made, parse_target(tmp_path / "out" / "x.safetensors"), force=False)
    with pytest.raises(Held, match="another run went on with it: this one gave no sign of life for 60 s"):
        perform(job, by=Engine("x", Wrapped(executor, calls(take, number)), is_here=is_here))
    (left,) = (tmp_path / "out").iterdir()
    assert (left / ".tasks" / "publishing").read_bytes() == OTHER
    assert [path.name for path in left.glob("**/*.safetensors")], "what the other one makes"


@pytest.mark.parametrize("number", [0, 1])
def test_a_folder_that_the_other_one_has_removed(tmp_path: Path, executor: Executor, number: int):
    """It has published meanwhile: what a worker, or the one who asks, says of the folder is not what is told."""
    made = plans(RUNS["one file"](tmp_path / "run"), "200ba")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "x.safetensors"

    def publish() -> None:
        (folder,) = (tmp_path / "out").glob(".ema-cli-parts-*")
        shutil.rmtree(folder)
        target.write_bytes(OTHER)

    job = prepare(made, parse_target(target), force=False)
    with pytest.raises(Held, match="another run went on with it"):
        perform(job, by=Engine("x", Wrapped(executor, calls(publish, number)), is_here=True))
    assert files_below(tmp_path / "out") == {"x.safetensors": OTHER}


def test_in_a_store(tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch):
    """What is beside the output is the other one's, and so is the claim."""
    monkeypatch.setattr(claim_watch, "_LOOK_SHARE", 0.0)
    bucket = StorePath("memory://taken-over/models")
    made = put_run(bucket / "run", tmp_path)
    options = OutputOptions.parse(max_shard_size=600)
    job = prepare(made, parse_target(bucket / "out"), options, force=False)
    own = claim.claim_path(bucket / "out")

    def chosen(task: Task) -> bool:
        return task.number == 2

    take = calls(lambda: put(own, OTHER), 0)
    with pytest.raises(Held, match="another run went on with it"):
        perform(job, by=Engine("x", Wrapped(executor, take, chosen)))
    left = present(bucket / "out")
    assert left[own.name] == OTHER
    assert any(".ema-cli-parts-" in name for name in left)
