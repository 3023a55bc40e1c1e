"""A slow store: 20 ms a request, and 60 MB/s a connection. It takes longer, and nothing else changes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ema_cli.storage.names import StorePath
from tests.conftest import Cli
from tests.storage.proxy import Proxy, Request
from tests.storage.staging.test_in_store import local, present
from tests.storage.stores import put_folder

UNIFORM = ("--profile", "uniform")


@pytest.mark.slow
def test_a_slow_store_is_read_and_written(proxy: Proxy, folder: StorePath, tmp_path: Path, cli: Cli):
    """From there into there: the bytes are those of a disk, with no request twice and many parts at once."""
    (tmp_path / "run").mkdir()
    (tmp_path / "here").mkdir()
    for step in (100, 200):
        tensors = {f"w{number}": torch.full((750, 1000), float(step + number)) for number in range(4)}
        save_file(tensors, tmp_path / "run" / f"step-{step}.safetensors")
    put_folder(folder / "run", local(tmp_path / "run"))
    assert cli("average", tmp_path / "run", *UNIFORM, "-o", tmp_path / "here" / "release").code == 0
    proxy.delay, proxy.rate = 0.02, 60_000_000
    before = len(proxy.requests)
    done = cli("average", folder / "run", *UNIFORM, "-o", folder / "there" / "release")
    assert done.code == 0, done
    assert present(folder / "there") == local(tmp_path / "here")
    asked = [
        (request.path, request.range) for request in proxy.requests[before:] if request.range and "run/" in request.path
    ]
    assert len(asked) == len(set(asked)) > 0
    assert cli("verify", folder / "there" / "release", "--against", folder / "run").code == 0


@pytest.mark.slow
def test_ctrl_c_ends_a_run_whose_store_does_not_answer(proxy: Proxy, folder: StorePath, tmp_path: Path):
    """At once: nobody waits for a thread that waits for the store."""
    for step in (100, 200, 300):
        save_file({"w": torch.full((1_000_000,), float(step))}, tmp_path / "saved")
        put_folder(folder, {f"step-{step}.safetensors": (tmp_path / "saved").read_bytes()})
    stalled = threading.Event()

    def fault(request: Request) -> str | None:
        if not request.range or "step-200" not in request.path or request.range.startswith("bytes=0-"):
            return None
        stalled.set()
        return "stall"

    proxy.fault = fault
    command = [
        sys.executable,
        "-m",
        "ema_cli",
        "average",
        str(folder),
        *UNIFORM,
        "-o",
        str(tmp_path / "out.safetensors"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert stalled.wait(30)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.5)  # it waits for the store
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=10)  # a store is waited for half a minute and more
    assert (run.returncode, err.splitlines()[-1]) == (130, "interrupted, nothing written")
    assert not (tmp_path / "out.safetensors").exists()
