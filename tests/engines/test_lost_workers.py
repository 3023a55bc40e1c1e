"""Workers that die, machines that differ, disks that are full: equal bytes, or one error and nothing published."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.averaging import average, perform
from ema_cli.engines.engine import Engine, EngineError
from ema_cli.engines.opening import open_engine
from ema_cli.engines.process_pool import Processes, process_loss
from ema_cli.errors import OutputError, UsageError
from ema_cli.planning.plan import Plan
from ema_cli.preparing import prepare
from ema_cli.writing.target import parse_target
from tests.engines.lost import (
    Wrapped,
    die,
    die_once_with_the_second_task,
    first_worker_killed,
    wait_for,
    with_another_disk,
    with_full_disk,
    with_other_version,
    workers_that_did_something,
)
from tests.engines.runs import files_below
from tests.engines.test_equal_bytes import plans

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Plan]:
    """A run of four checkpoints of 48 MB, which takes long enough to be in the middle of it."""
    folder = tmp_path_factory.mktemp("lost") / "one file"
    folder.mkdir()
    for step in (100, 200, 300, 400):
        random = torch.Generator().manual_seed(step)
        saved = {f"layer.{number}": torch.randn(1000, 1000, generator=random) for number in range(12)}
        save_file(saved, folder / f"step-{step}.safetensors", metadata={"format": "pt"})
    return plans(folder, "200ba")


@pytest.fixture(scope="module")
def alone(made: list[Plan], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    average(made, folder / "x.safetensors")
    return files_below(folder)


@pytest.fixture
def pool() -> Iterator[Processes]:
    """Two processes."""
    processes = Processes(2)
    yield processes
    processes.shutdown(cancel_futures=True)


def make(made: list[Plan], folder: Path, engine: Engine) -> object:
    return perform(prepare(made, parse_target(folder / "x.safetensors"), force=False), by=engine)


@pytest.mark.usefixtures("small_tasks")
def test_processes_of_which_one_is_killed(made: list[Plan], alone: dict[str, bytes], tmp_path: Path):
    """What it was doing is done by others; the bytes are the same."""
    killed = tmp_path / "killed"
    with open_engine("processes=2") as engine:
        dying = Wrapped(engine.executor, partial(die_once_with_the_second_task, killed))
        job = prepare(made, parse_target(tmp_path / "x.safetensors"), force=False)
        result = perform(job, by=replace(engine, executor=dying))
    assert killed.exists()
    killed.unlink()
    workers = {share.worker.rpartition(":")[2] for share in result.workers}
    assert len(workers) == 3, "a new one took its place"
    assert files_below(tmp_path) == alone


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.full)])
def test_dask_of_which_one_is_killed(made: list[Plan], alone: dict[str, bytes], tmp_path: Path, workers: int):
    """The same of Dask's workers."""
    pytest.importorskip("distributed")
    with open_engine(f"dask:local={workers}") as engine, first_worker_killed(tmp_path) as killed:
        make(made, tmp_path, engine)
    assert killed
    assert files_below(tmp_path) == alone


@pytest.mark.usefixtures("small_tasks")
def test_a_task_that_kills_each_worker(made: list[Plan], alone: dict[str, bytes], tmp_path: Path, pool: Processes):
    """After four workers, one error names the last of them and what it was to make; what is finished stays."""
    poisoned = Engine("processes=2", Wrapped(pool, die, lambda task: task.number == 0), 1, process_loss)
    with pytest.raises(EngineError) as caught:
        make(made, tmp_path, poisoned)
    assert re.search(r"process \d+, ended by signal 9", caught.value.fact)
    assert "x.safetensors, bytes 0 to" in caught.value.fact
    assert "4 workers" in caught.value.fact
    assert not (tmp_path / "x.safetensors").exists()
    result = perform(
        prepare(made, parse_target(tmp_path / "x.safetensors"), force=False),
        by=Engine("processes=2", pool, 1, process_loss),
    )
    assert files_below(tmp_path) == alone, "the others still work, and go on with what is finished"
    assert result.bytes_read < 4 * 48_000_000


def test_a_pool_that_breaks(made: list[Plan], tmp_path: Path):
    """The pool of the standard library breaks as a whole: an error, and nothing is published."""
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as broken,
        pytest.raises(EngineError, match="takes no more tasks"),
    ):
        make(made, tmp_path, Engine("executor", Wrapped(broken, die, lambda task: task.number == 0)))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_worker_whose_disk_is_full(made: list[Plan], tmp_path: Path, pool: Processes):
    """An error that names the worker and the file; nothing is left."""
    full = Engine("processes=2", Wrapped(pool, with_full_disk, lambda task: task.number == 0), 1, process_loss)
    with pytest.raises(OutputError, match=r"cannot be written: File too large \(worker .*:\d+\)"):
        make(made, tmp_path, full)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_with_another_version(made: list[Plan], tmp_path: Path, pool: Processes):
    """An error that names both versions, and what to install."""
    other = Engine("processes=2", Wrapped(pool, with_other_version, lambda task: True), 1, process_loss)
    with pytest.raises(UsageError, match=r"worker .*: has numpy \d\S+, and the one who asks 1\.0\.0") as caught:
        make(made, tmp_path, other)
    assert caught.value.hint == "install the same on all: pip install numpy==1.0.0"
    assert list(tmp_path.iterdir()) == []


COMMAND = """
import sys
from ema_cli.engines import tasks
from ema_cli.__main__ import main
tasks._LEAST_BYTES = 1 << 20
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_the_one_who_asks_dies(made: list[Plan], alone: dict[str, bytes], tmp_path: Path, number: signal.Signals):
    """Its workers end, and nothing is published. After a kill, what is finished stays for the same command."""
    (tmp_path / "script.py").write_text(COMMAND)
    arguments = [made[0].run.root, "--name-clock", "ba", "--half-life", "200ba", "-o", "out/x.safetensors"]
    command = [sys.executable, "script.py", "average", *map(str, arguments), "--on", "processes=2"]
    (tmp_path / "out").mkdir()
    program = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    workers = set(wait_for(lambda: workers_that_did_something(tmp_path / "out")))
    program.send_signal(number)
    _, said = program.communicate(timeout=60)
    wait_for(lambda: not any(is_alive(worker) for worker in workers))
    left = list((tmp_path / "out").iterdir())
    if number == signal.SIGINT:
        assert (program.returncode, left) == (130, [])
        assert said == "interrupted, nothing written\n"
        return
    assert [path.name.startswith(".ema-cli-parts-") for path in left] == [True]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "out") == alone


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Dask's scheduler with two workers, as processes of their own: its address, and its process."""
    pytest.importorskip("distributed")
    ours = Path(sys.executable).parent / "dask"
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
    place = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": tmp_path}
    quiet["start_new_session"] = True  # so that a worker ends with its own
    begun = [
        subprocess.Popen(
            [ours, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", place],
            **quiet,  # type: ignore[call-overload]
        )
    ]
    try:
        wait_for(place.exists)
        import json

        address = wait_for(lambda: place.stat().st_size and json.loads(place.read_text())["address"])
        worker = [
            ours,
            "worker",
            address,
            "--nthreads",
            "1",
            "--nworkers",
            "2",
            "--no-dashboard",
            "--host",
            "127.0.0.1",
        ]
        begun.append(subprocess.Popen([*worker, "--local-directory", tmp_path / "dask"], **quiet))  # type: ignore[call-overload]
        yield address.replace("tcp://", "dask://"), begun[0]
    finally:
        for process in begun:
            process.terminate()
        for process in begun:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:  # workers wait for their scheduler to come back
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.full
@pytest.mark.usefixtures("small_tasks")
def test_a_scheduler_that_vanishes(
    made: list[Plan], alone: dict[str, bytes], tmp_path: Path, scheduler: tuple[str, subprocess.Popen[bytes]]
):
    """One error that names it; what is finished stays, and another engine goes on with it."""
    address, process = scheduler
    out = tmp_path / "out"
    out.mkdir()
    job = prepare(made, parse_target(out / "x.safetensors"), force=False)

    def kill(done: int, total: int) -> None:
        if done and process.poll() is None:
            process.kill()

    with open_engine(address) as engine, pytest.raises(EngineError, match="the scheduler went away"):
        perform(job, by=engine, progress=kill)
    assert not (out / "x.safetensors").exists()
    with open_engine("processes=2") as engine:
        result = perform(prepare(made, parse_target(out / "x.safetensors"), force=False), by=engine)
    assert files_below(out) == alone
    assert result.bytes_read < 4 * 48_000_000, "some of it was finished"


def test_the_output_is_not_where_workers_see_it(made: list[Plan], tmp_path: Path, pool: Processes):
    """A folder that a worker does not have is an error that says so."""
    elsewhere = Engine("processes=2", Wrapped(pool, with_another_disk, lambda task: True), 1, process_loss)
    with pytest.raises(OutputError, match="the folder in which the average is made is not there"):
        make(made, tmp_path, elsewhere)
    assert list(tmp_path.iterdir()) == []
