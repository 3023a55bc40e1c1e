"""Workers that read from a store, and write into one: the objects are those that one process makes."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from ema_cli.averaging import average, perform
from ema_cli.engines import tasks
from ema_cli.engines.engine import Engine, EngineError, plain_loss
from ema_cli.engines.opening import open_engine
from ema_cli.engines.part import Part
from ema_cli.errors import OutputError, UsageError
from ema_cli.job import Job
from ema_cli.law.recipe import Recipe
from ema_cli.planning.plan import Plan, make_plan
from ema_cli.preparing import prepare
from ema_cli.runs.run import open_run
from ema_cli.storage.names import AnonymousPath, StorePath
from ema_cli.storage.staging import shared_in_store
from ema_cli.storage.store import clients, contents, listing
from ema_cli.writing.output_options import OutputOptions
from ema_cli.writing.target import parse_target
from tests.engines.lost import Wrapped
from tests.engines.runs import RUNS
from tests.storage.stores import obstore, put_folder

pytestmark = pytest.mark.usefixtures("small_tasks")
_numbers = count()


def present(folder: StorePath) -> dict[str, bytes]:
    """Return the objects whose names begin with that of a folder, by the rest of their names."""
    listing.forget_listings()
    client = clients.client_of(folder)
    keys = [meta["path"] for page in obstore.list(client, folder.parent.key or None) for meta in page]
    return {
        key.removeprefix(f"{folder.parent.key}/"): bytes(obstore.get(client, key).bytes())
        for key in keys
        if folder.name in key.removeprefix(f"{folder.parent.key}/").partition("/")[0]
    }


def put_run(folder: StorePath, disk: Path) -> list[Plan]:
    """Put a run of shards into a store; return the plan of its average."""
    run = RUNS["transformers"](disk / "transformers")
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    put_folder(folder, files)
    listing.forget_listings()
    return [make_plan(open_run(folder), Recipe(half_life="200ba"))]


@pytest.fixture
def bucket() -> StorePath:
    """Return an address in an empty store in memory."""
    return StorePath(f"memory://shared-{next(_numbers)}/models")


def test_a_folder_in_a_store(tmp_path: Path, bucket: StorePath, executor: Executor):
    """Shards, manifest and sums are those of one process; nothing else is left, no claim and no word of a task."""
    made = put_run(bucket / "run", tmp_path)
    average(made, bucket / "alone", checksum=True, max_shard_size=1500)
    average(made, bucket / "workers", checksum=True, max_shard_size=1500, executor=executor)
    alone, workers = present(bucket / "alone"), present(bucket / "workers")
    assert len(alone) > 5
    assert {name.replace("workers", "alone", 1): content for name, content in workers.items()} == alone


def test_a_release_that_is_replaced(tmp_path: Path, bucket: StorePath, executor: Executor):
    """With force, the older one stays until the new one is whole; what it had more is gone at the end."""
    made = put_run(bucket / "run", tmp_path)
    average(made, bucket / "out", max_shard_size=600)
    average(made, bucket / "out", max_shard_size=1500, executor=executor, force=True)
    average(made, bucket / "alone", max_shard_size=1500)
    there = {name.replace("alone", "out", 1): content for name, content in present(bucket / "alone").items()}
    assert present(bucket / "out") == there


def test_workers_that_are_lost(tmp_path: Path, bucket: StorePath, executor: Executor):
    """After an error nothing is left; where workers were lost, what is finished stays, and the next run goes on."""
    made = put_run(bucket / "run", tmp_path)

    def lose(*_: object) -> None:
        raise EngineBroken

    broken = Engine("x", Wrapped(executor, lose, lambda task: task.number == 2), 1, plain_loss)
    with pytest.raises(EngineError, match="was lost with model-"):
        perform(prepared(made, bucket / "out", 1500), by=broken)
    left = present(bucket / "out")
    assert not any(name.endswith("ema-manifest.json") for name in left)
    assert any(".ema-cli-parts-" in name for name in left)
    again = prepared(made, bucket / "out", 1500)
    assert perform(again, by=Engine("x", executor)).bytes_read < again.bytes_to_read
    average(made, bucket / "alone", max_shard_size=1500)
    there = {name.replace("alone", "out", 1): content for name, content in present(bucket / "alone").items()}
    assert present(bucket / "out") == there


def test_a_second_run_of_the_same_average(tmp_path: Path, bucket: StorePath, executor: Executor):
    """It is refused, and leaves what workers of the first have put: it used to remove that, and the first failed."""
    made = put_run(bucket / "run", tmp_path)
    refused: list[tuple[set[str], set[str]]] = []

    def begin_another(done: int, total: int) -> None:
        put = set(present(bucket / "out"))
        if not refused and any(name.endswith(".safetensors") for name in put):
            with pytest.raises(OutputError, match="the claim on it is held by another run"):
                perform(prepared(made, bucket / "out", 600), by=Engine("x", executor))
            refused.append((put, set(present(bucket / "out"))))

    first = prepared(made, bucket / "out", 600)
    perform(first, by=Engine("x", executor), progress=begin_another)
    ((before, after),) = refused
    assert before <= after
    average(made, bucket / "alone", max_shard_size=600)
    there = {name.replace("alone", "out", 1): content for name, content in present(bucket / "alone").items()}
    assert present(bucket / "out") == there


class EngineBroken(BrokenExecutor):
    """A worker that is lost."""


@pytest.mark.parametrize("count", [1, 3])
def test_parts(tmp_path: Path, bucket: StorePath, count: int):
    """Parts know nothing of each other but what lies beside the output; the last one publishes."""
    made = put_run(bucket / "run", tmp_path)
    average(made, bucket / "alone", max_shard_size=600)
    published = []
    for number in range(count):
        job = prepared(made, bucket / "out", 600)
        result = perform(job, by=Part(number, count), threads=2)
        assert result.part is not None
        published.append(result.part.published)
    assert published == [False] * (count - 1) + [True]
    there = {name.replace("alone", "out", 1): content for name, content in present(bucket / "alone").items()}
    assert present(bucket / "out") == there
    with pytest.raises(UsageError, match="one file in a store, in which each part") as caught:
        perform(prepare(made, parse_target(bucket / "x.safetensors"), force=False), by=Part(0, 2))
    assert caught.value.hint == f"write a folder of shards: target='{bucket}/x' max_shard_size='4752B'"
    assert perform(prepared(made, bucket / "x", 4752), by=Part(0, 2)).part is not None


def test_parts_of_what_cannot_be_cut_get_no_hint_that_does_not_help(
    tmp_path: Path, bucket: StorePath, monkeypatch: pytest.MonkeyPatch
):
    """The size of shards that a hint names gives more than one task; where none does, it says so."""
    made = put_run(bucket / "run", tmp_path)
    with pytest.raises(UsageError, match="one file in a store") as caught:
        perform(prepared(made, bucket / "out", 5 * 10**9), by=Part(0, 2))
    assert caught.value.hint == f"write a folder of shards: target='{bucket}/out' max_shard_size='4752B'"
    monkeypatch.setattr(tasks, "_LEAST_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="is so small that one part makes all of its files") as caught:
        perform(prepared(made, bucket / "out", 600), by=Part(0, 2))
    assert caught.value.hint == "its tensors are too few, or too small, for several files: leave out part="


def test_a_store_that_refuses_what_a_part_puts(tmp_path: Path, bucket: StorePath, monkeypatch: pytest.MonkeyPatch):
    """The error is the store's, though nothing was put yet. Nothing is left here, nor of a killed worker."""
    made = put_run(bucket / "run", tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp" / ".ema-cli-0123456789abcdef").mkdir()
    seen = []

    def refuse(path: StorePath, file: Path) -> None:
        seen.extend(file.relative_to(tmp_path / "tmp").parts[:1])
        raise OutputError("is refused", subject=path)

    monkeypatch.setattr(contents, "put_file", refuse)
    with pytest.raises(OutputError, match="is refused"):
        perform(prepared(made, bucket / "out", 600), by=Part(0, 2), threads=2)
    assert re.fullmatch(r"\.ema-cli-[0-9a-f]{16}", seen[0])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_store_that_is_gone_in_the_end_hides_no_error(bucket: StorePath, monkeypatch: pytest.MonkeyPatch):
    """What cannot be cleaned up there is left, and the error is that which ended the run."""

    def gone(*_: object, **__: object) -> None:
        raise obstore.exceptions.GenericError("nobody answers")

    def end() -> None:
        with shared_in_store.SharedStoreStaging(bucket / "out", "0123456789abcdef", claims=True):
            for name in ("get", "head", "list", "delete"):
                monkeypatch.setattr(obstore, name, gone)
            raise OutputError("is full", subject="disk")

    with pytest.raises(OutputError, match="is full"):
        end()


def test_a_single_file(tmp_path: Path, bucket: StorePath, executor: Executor, monkeypatch: pytest.MonkeyPatch):
    """One worker makes it; one that no store copies is refused, with what can be written instead."""
    made = put_run(bucket / "run", tmp_path)
    average(made, bucket / "alone.safetensors")
    average(made, bucket / "x.safetensors", executor=executor)
    there = {name.replace("alone", "x", 1): content for name, content in present(bucket / "alone.safetensors").items()}
    found = present(bucket / "x.safetensors")
    assert found.keys() == there.keys()
    assert found["x.safetensors"] == there["x.safetensors"]
    monkeypatch.setattr(shared_in_store, "MOST_COPIED", 1000)
    with pytest.raises(UsageError, match=r"x\.safetensors has .*, and a store copies at most 1 kB at once"):
        average(made, bucket / "y" / "x.safetensors", executor=executor)


def test_two_who_ask_at_once_of_whom_one_is_anonymous(
    tmp_path: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
):
    """They share workers, and each reads what it may see: with each address goes whether its requests are signed."""
    monkeypatch.setattr(
        clients, "_clients", {("s3://shared", each): obstore.store.MemoryStore() for each in (True, False)}
    )
    both = threading.Barrier(2, timeout=60)
    folders = [StorePath("s3://shared/models"), AnonymousPath("s3://shared/models")]
    made = [put_run(folder / "run", tmp_path / str(number)) for number, folder in enumerate(folders)]
    made[1] = put_run(folders[1] / "run", tmp_path / "again")  # so that other versions are there
    for plans, folder in zip(made, folders, strict=True):
        average(plans, folder / "alone", max_shard_size=600)

    def do(function: Callable[..., object], *arguments: object) -> object:
        both.wait()
        try:
            return function(*arguments)
        finally:
            both.wait()

    def make(number: int) -> None:
        job = prepared(made[number], folders[number] / "out", 600)
        perform(job, by=Engine("x", Wrapped(executor, do)))

    with ThreadPoolExecutor(2) as those_who_ask:
        list(those_who_ask.map(make, range(2)))
    for folder in folders:
        there = {name.replace("alone", "out", 1): content for name, content in present(folder / "alone").items()}
        assert len(there) > 3
        assert present(folder / "out") == there


@pytest.mark.slow
@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize("engine", ["processes=2", pytest.param("dask:local=2", marks=pytest.mark.full)])
def test_processes_of_which_one_is_killed(tmp_path: Path, folder: StorePath, engine: str):
    """From SeaweedFS into SeaweedFS, by processes of which one is killed in the middle: the objects of one process."""
    made = put_run(folder / "run", tmp_path)
    average(made, folder / "alone", max_shard_size=600)
    job = prepared(made, folder / "out", 600)
    killed = threading.Event()

    with open_engine(engine) as opened:

        def kill(done: int, total: int) -> None:
            there = present(folder / "out")
            told = [
                json.loads(there[name].splitlines()[1]) for name in there if re.search(r"parts-.*/\d+\.json$", name)
            ]
            if told and not killed.is_set():
                killed.set()
                os.kill(int(told[0]["worker"].rpartition(":")[2]), signal.SIGKILL)

        perform(job, by=opened, progress=kill)
    assert killed.is_set()
    there = {name.replace("alone", "out", 1): content for name, content in present(folder / "alone").items()}
    assert present(folder / "out") == there


def prepared(made: list[Plan], place: StorePath, most_bytes: int) -> Job:
    """Return the job of an average in shards of so many bytes."""
    return prepare(made, parse_target(place), OutputOptions.parse(max_shard_size=most_bytes), force=False)
