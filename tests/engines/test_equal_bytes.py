"""What several workers make is, byte for byte, what one process makes: files, manifest and sums."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

import pytest

from ema_cli.averaging import average, perform
from ema_cli.engines import records, worker
from ema_cli.engines.engine import Engine, EngineError
from ema_cli.engines.tasks import Step, Task
from ema_cli.law.recipe import Recipe
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.preparing import prepare
from ema_cli.runs.run import open_run
from ema_cli.storage import direct_stream, segments
from ema_cli.storage.direct_stream import DirectStream
from ema_cli.storage.output_stream import OutputStream
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


@pytest.mark.parametrize("is_here", [True, False])
def test_who_finishes_a_file_brings_it_to_the_disk(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch, *, is_here: bool
):
    """The one who asks, once, of workers of this machine; each worker what it wrote, of others."""
    made, synced = plans(RUNS["one file"](tmp_path / "one file"), "200ba"), list[Path]()
    sync = OutputStream.sync
    monkeypatch.setattr(
        OutputStream, "sync", lambda stream: (synced.extend([stream.path] * stream._synced), sync(stream))[1]
    )
    job = prepare(made, parse_target(tmp_path / "x.safetensors"), force=False, manifest=False)
    result = perform(job, by=Engine("x", executor, is_here=is_here))
    tasks = sum(share.tasks for share in result.workers)
    assert tasks > 2
    assert len([path for path in synced if path.name == "x.safetensors"]) == (1 if is_here else tasks)


@pytest.mark.parametrize("manifest", [False, True])
def test_stretches_of_large_files_go_past_the_page_cache_unless_they_are_summed_up(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch, *, manifest: bool
):
    """Then they are read again."""
    written: list[Path] = []

    class Noted(DirectStream):
        def __init__(self, path: Path, *args: Any, **options: Any) -> None:
            super().__init__(path, *args, **options)
            written.append(path)

    made = plans(RUNS["one file"](tmp_path / "one file"), "200ba")
    for name, by in (("alone", None), ("workers", Engine("x", executor))):
        (tmp_path / name).mkdir()
        job = prepare(made, parse_target(tmp_path / name / "x.safetensors"), force=False, manifest=manifest)
        perform(job, by=by)
        monkeypatch.setattr(direct_stream, "_LEAST_BYTES", 1)
        monkeypatch.setattr(segments, "SEGMENT_BYTES", 1 << 12)
        monkeypatch.setattr(worker, "DirectStream", Noted)
    assert (len(written) > 2) is not manifest
    assert files_below(tmp_path / "workers") == files_below(tmp_path / "alone")


def test_elements_that_end_behind_a_stretch_go_past_the_page_cache(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
):
    """Those of 6 bits share bytes by eight: six bytes, of which any may be the first of the next stretch."""
    count = 8 * 5001
    names = {"w": {"dtype": "F6_E2M3", "shape": [count], "data_offsets": [0, count * 6 // 8]}}
    header = json.dumps(names).encode()
    (tmp_path / "one file").mkdir()
    for step in (100, 200):
        data = random.Random(step).randbytes(count * 6 // 8)
        saved = len(header).to_bytes(8, "little") + header + data
        (tmp_path / "one file" / f"step-{step}.safetensors").write_bytes(saved)
    monkeypatch.setattr(direct_stream, "_LEAST_BYTES", 1)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1 << 12)
    opened = open_run(tmp_path / "one file", name_clock="ba", copy=["w"])
    made = [make_plan(opened, Recipe(half_life="200ba"))]
    for name, by in (("alone", None), ("workers", Engine("x", executor))):
        (tmp_path / name).mkdir()
        target = parse_target(tmp_path / name / "x.safetensors")
        perform(prepare(made, target, force=False, manifest=False), by=by)
    assert files_below(tmp_path / "workers") == files_below(tmp_path / "alone")


def test_what_the_disk_may_not_have_is_not_believed_after_a_start_of_the_machine(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
):
    """Where no sums tell. Until then it is what it is, and nobody makes it again."""
    made = plans(RUNS["one file"](tmp_path / "one file"), "200ba")

    def lose(*_: object) -> None:
        raise BrokenExecutor

    def read_after(loss: Callable[[Task], bool], *, manifest: bool) -> int:
        job = prepare(made, parse_target(tmp_path / "x.safetensors"), force=True, manifest=manifest)
        return perform(job, by=Engine("x", Wrapped(executor, lose, loss), is_here=True)).bytes_read

    whole = read_after(lambda task: False, manifest=False)
    for manifest, start, is_believed in ((False, "", True), (False, "later", False), (True, "later", True)):
        with pytest.raises(EngineError):
            read_after(lambda task: task.number == 1, manifest=manifest)
        with monkeypatch.context() as patch:
            if start:
                patch.setattr(records, "this_machine", lambda: start)  # noqa: B023 - called in this turn
            assert (read_after(lambda task: False, manifest=manifest) < whole) is is_believed


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
