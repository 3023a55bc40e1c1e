"""What several workers make is, byte for byte, what one process makes: files, manifest and sums."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from ema_cli.averaging import average, perform
from ema_cli.engines.engine import Engine
from ema_cli.engines.tasks import Step, Task
from ema_cli.law.recipe import Recipe
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.preparing import prepare
from ema_cli.runs.run import open_run
from ema_cli.writing.target import assign_targets, parse_target
from tests.engines.lost import Wrapped
from tests.engines.runs import RUNS, files_below

pytestmark = pytest.mark.usefixtures("small_tasks", "small_blocks")

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "a file": ("x.safetensors", {}),
    "a file, all in one type": ("x.safetensors", {"dtype": "float32"}),
    "a file of torch's": ("x.pt", {}),
    "a folder": ("x", {"max_shard_size": 1500}),
    "DCP": ("dcp:x", {}),
    "as the input": ("x", {"like_input": True}),
}


def plans(run: Path, *half_lives: str) -> list[Plan]:
    opened = open_run(run, name_clock="ba") if run.name == "one file" else open_run(run)
    return [make_plan(opened, Recipe(half_life=half_life)) for half_life in half_lives]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_each_form_of_output(tmp_path: Path, executor: Executor, run: str, form: str):
    """Each container, in each form: of the workers, with sums of all that was read, as of one process."""
    name, options = FORMS[form]
    if options.get("like_input") and run != "transformers":
        name = "x.safetensors" if run == "one file" else "x.pt"
    made = plans(RUNS[run](tmp_path / run), "200ba")
    for folder, workers in (("alone", None), ("workers", executor)):
        (tmp_path / folder).mkdir()
        place = name.replace("x", f"{tmp_path / folder}/x")
        result = average(made, place, checksum=True, executor=workers, **options)
        assert bool(result.workers) is (workers is not None)
    assert files_below(tmp_path / "workers") == files_below(tmp_path / "alone")


@pytest.mark.parametrize("run", RUNS)
def test_several_half_lives(tmp_path: Path, executor: Executor, run: str):
    """Several averages in one pass, with a window so short that their newest tensors are the same."""
    made = plans(RUNS[run](tmp_path / run), "50ba", "200ba", "100ba")
    for folder, workers in (("alone", None), ("workers", executor)):
        average(made, tmp_path / folder / "ema-{half_life}", checksum=True, executor=workers)
    assert files_below(tmp_path / "workers") == files_below(tmp_path / "alone")


@pytest.mark.parametrize("form", ["a file", "a file of torch's"])
@pytest.mark.parametrize("run", ["one file", "torch"])
def test_workers_of_this_machine(tmp_path: Path, executor: Executor, run: str, form: str):
    """The one who asks sums up what they write, while they write it; no task is left for that at the end."""
    name, _ = FORMS[form]
    made = plans(RUNS[run](tmp_path / run), "200ba", "50ba")
    asked: list[Task] = []
    noting = Wrapped(executor, lambda function, *arguments: asked.append(arguments[-1]) or function(*arguments))
    for folder, by in (("alone", None), ("workers", Engine("here", noting, is_here=True))):
        targets = assign_targets(parse_target(tmp_path / folder / name.replace("x", "{half_life}")), made)
        perform(prepare(made, targets, force=False), by=by)
    assert {task.step for task in asked} == {Step.STRETCH}
    assert files_below(tmp_path / "workers") == files_below(tmp_path / "alone")


class Shuffled(Executor):
    """Does tasks at once, each of them twice, and tells of them in any order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._calls: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        fn(*args, **kwargs)
        future.set_result(fn(*args, **kwargs))
        return future


def test_a_task_that_is_done_twice(tmp_path: Path):
    """A task that is done again finds what it made, and changes nothing."""
    made = plans(RUNS["one file"](tmp_path / "one file"), "200ba")
    (tmp_path / "alone").mkdir()
    (tmp_path / "twice").mkdir()
    average(made, tmp_path / "alone" / "x.safetensors")
    result = average(made, tmp_path / "twice" / "x.safetensors", executor=Shuffled(1))
    assert files_below(tmp_path / "twice") == files_below(tmp_path / "alone")
    assert sum(share.bytes_read for share in result.workers) == 0, "the second time"
