"""Ctrl-C while a store answers nothing any more, from any request on: the end comes within seconds, not minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ema_cli.storage.names import StorePath
from tests.conftest import Cli, write_hf_run
from tests.storage.proxy import Proxy, Request
from tests.storage.staging.test_in_store import local
from tests.storage.store.test_killed_in_stores import empty
from tests.storage.stores import put_folder

LAW = ("--half-life", "500ba")
MOST_SECONDS = 20  # on a busy machine; a store is waited for half a minute and more, and that several times


@pytest.fixture
def run(folder: StorePath, tmp_path: Path) -> StorePath:
    """Return the address of a run; beside it lies its average, `release`."""
    write_hf_run(tmp_path / "ckpts", [500, 1000, 1500])
    put_folder(folder / "ckpts", local(tmp_path / "ckpts"))
    return folder / "ckpts"


def command(name: str, run: StorePath, target: StorePath, disk: Path) -> Sequence[object]:
    """Return the command of a name."""
    average: tuple[object, ...] = ("average", run, *LAW, "-o", target)
    shards = ("--max-shard-size", "2kB")
    watch = ("watch", run, *LAW, "--once", "--settle", "0s", "-o", target)
    tune = ("tune", run, "--half-life", "500ba", "--half-life", "1000ba", "--eval", "echo 1", "-o", target)
    return {
        "inspect": ("inspect", run, *LAW),
        "average": average,
        "replace": (*average, "--force"),
        "to-disk": ("average", run, *LAW, "--like-input", "-o", disk / "out"),
        "part": ("average", run, *LAW, "-o", disk / "out", "--part", "0/1"),
        "processes": (*average, *shards, "--on", "processes=2"),
        "dask": (*average, *shards, "--on", "dask:local=2"),
        "tune": tune,
        "watch": watch,
        "verify": ("verify", target, "--against", run),
    }[name]


def interrupted_at(
    number: int, proxy: Proxy, arguments: Sequence[object], cwd: Path, *, times: int = 1
) -> tuple[int, str, float]:
    """Run ema-cli in a folder, and interrupt it when the store answers nothing any more, from a request of a number on.

    Return its exit code, what it said, and how long it took to end.
    """
    silent, first = threading.Event(), len(proxy.requests) + number

    def fault(request: Request) -> str | None:
        if request.number < first:
            return None
        silent.set()
        return "silence"

    proxy.fault = fault
    process = subprocess.Popen(
        [sys.executable, "-m", "ema_cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not silent.wait(0.05) and process.poll() is None:
        pass
    time.sleep(0.3)  # it waits for the store
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    proxy.fault = lambda request: None
    return process.returncode, said, time.monotonic() - began


def check(name: str, number: int, proxy: Proxy, run: StorePath, target: StorePath, disk: Path, cli: Cli) -> int:
    """Interrupt a command; return its exit code. The same command then does what it does without an interruption."""
    arguments = command(name, run, target, disk)
    code, said, seconds = interrupted_at(number, proxy, arguments, disk, times=2 if name == "watch" else 1)
    if code:
        assert "Traceback" not in said, f"{number}: {said}"
        assert (code, said.splitlines()[-1][:11]) == (130, "interrupted"), (number, said)
        assert seconds < MOST_SECONDS, (number, seconds, said)
        assert not (disk / "out").exists()
    if name == "to-disk":
        assert {path.name for path in disk.iterdir()} <= {"ckpts", "out"}
    elif name not in ("inspect", "part", "verify"):
        again = cli(*arguments, *([] if "--force" in arguments or name == "watch" else ["--force"]))
        assert again.code == 0, (number, again)
        assert cli("verify", target, "--against", run).code == 0
    return code


ALL = ["inspect", "average", "replace", "to-disk", "part", "processes", "dask", "tune", "watch", "verify"]


@pytest.mark.slow
def test_the_main_thread_does_not_wait_for_a_store(proxy: Proxy, run: StorePath, tmp_path: Path):
    """It looks, and nobody answers."""
    code, said, seconds = interrupted_at(0, proxy, command("inspect", run, run, tmp_path), tmp_path)
    assert (code, said.splitlines()[-1]) == (130, "interrupted, nothing written")
    assert seconds < MOST_SECONDS


@pytest.mark.full
@pytest.mark.parametrize("name", ALL)
def test_ctrl_c_ends_a_command_at_whatever_request_the_store_falls_silent(
    name: str, proxy: Proxy, run: StorePath, folder: StorePath, tmp_path: Path, cli: Cli
):
    """From each request on, until the command has no more."""
    number, target = 0, folder / "there" / "release"
    if name in ("verify", "replace"):
        assert cli("average", run, *LAW, "-o", target).code == 0
    while check(name, number, proxy, run, target, tmp_path, cli) != 0:
        number += 1
        if name not in ("replace", "verify"):
            empty(folder / "there")
    assert number > 3
