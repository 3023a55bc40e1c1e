"""Checkpoints of Orbax's in a bucket: tensorstore reads them there, and what was replaced meanwhile is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ema_cli import averaging
from ema_cli.formats.arrays import kvstores, zarr
from ema_cli.job import Job
from ema_cli.storage.names import StorePath
from ema_cli.storage.store import clients, listing
from tests.conftest import Cli
from tests.formats.arrays.orbax_files import write_step
from tests.storage.proxy import Proxy
from tests.storage.staging.test_in_store import local
from tests.storage.stores import put, put_folder

UNIFORM = ("--profile", "uniform")
STEPS = (10, 20, 30)


@pytest.fixture
def run(
    folder: StorePath, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> StorePath:
    """Return a run in SeaweedFS, which lies in `ckpts` on the disk, too."""
    monkeypatch.setattr(zarr, "_open_arrays", type(zarr._open_arrays)())
    form: dict[str, Any] = getattr(request, "param", {})
    for step in STEPS:
        kernel = np.random.default_rng(step).normal(size=(300, 400)).astype("f4")
        write_step(tmp_path / "ckpts" / str(step), {("params", "kernel"): kernel, ("step",): step}, **form)
    put_folder(folder / "run", local(tmp_path / "ckpts"))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("run", [{}, {"use_ocdbt": False}, {"use_zarr3": True}], indirect=True, ids=str)
def test_a_run_is_averaged_and_verified(run: StorePath, tmp_path: Path, cli: Cli):
    """The tensors are those of a copy on the disk; how it is read is said."""
    done = cli("average", run, *UNIFORM, "-o", tmp_path / "there.safetensors")
    assert done.code == 0, done
    assert "read by tensorstore, whose requests name no version of an object" in done.err
    assert cli("average", tmp_path / "ckpts", *UNIFORM, "-o", tmp_path / "here.safetensors").code == 0
    there, here = (load_file(tmp_path / f"{name}.safetensors") for name in ("there", "here"))
    assert there.keys() == here.keys()
    assert all(np.array_equal(there[name], here[name]) for name in here)
    assert cli("verify", tmp_path / "there.safetensors", "--against", run).code == 0


@pytest.mark.slow
def test_what_is_replaced_while_it_is_read_is_an_error(
    run: StorePath, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Whatever tensorstore read of it: all is read when it is replaced here, and its identity is another one."""
    content = (tmp_path / "ckpts" / "20" / "default" / "manifest.ocdbt").read_bytes()
    check = averaging.check_unchanged

    def replaced(job: Job) -> None:
        put(run / "20" / "default" / "manifest.ocdbt", content + b"\n")
        check(job)

    monkeypatch.setattr(averaging, "check_unchanged", replaced)
    done = cli("average", run, *UNIFORM, "-o", tmp_path / "out.safetensors")
    assert done.code == 3, done
    assert "20/default/manifest.ocdbt: changed while it was used" in done.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_without_a_signature_it_is_refused_where_it_is_not_public(
    run: StorePath, proxy: Proxy, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """Tensorstore signs nothing either with `--anonymous`."""
    monkeypatch.setattr(clients, "_clients", {})
    assert cli("inspect", run).code == 0
    assert all(request.signed for request in proxy.requests)
    before = len(proxy.requests)
    listing.forget_listings()
    assert cli("inspect", run, "--anonymous").code == 3
    assert not any(request.signed for request in proxy.requests[before:])


@pytest.mark.slow
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "always"])
def test_a_store_that_is_busy_is_asked_again(
    run: StorePath, proxy: Proxy, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, *, lasts: bool
):
    """Where it stays so, it is an error that names the checkpoint."""
    monkeypatch.setattr(kvstores, "_RETRIES", {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"})
    seen = count()
    proxy.fault = lambda request: "503" if "manifest.ocdbt" in request.path and (lasts or next(seen) == 0) else None
    done = cli("average", run, *UNIFORM, "-o", tmp_path / "out.safetensors")
    if lasts:
        assert done.code == 3, done
        assert f"{run}/" in done.err
        assert "All 2 retry attempts failed" in done.err
    else:
        assert done.code == 0, done
        assert next(seen) > 1


@pytest.mark.slow
def test_an_answer_that_stops_is_not_waited_for(run: StorePath, proxy: Proxy, tmp_path: Path):
    """It is asked for once more; what the environment says of tensorstore's patience is heeded."""
    seen = count()
    proxy.fault = lambda request: "stall" if "/default/d/" in request.path and next(seen) == 0 else None
    command = [sys.executable, "-m", "ema_cli", "average", str(run), *UNIFORM, "-o", str(tmp_path / "out.safetensors")]
    environment = {**os.environ, "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert next(seen) > 1


def test_a_store_that_tensorstore_does_not_reach_is_an_error_with_a_way_on(tmp_path: Path, cli: Cli):
    """Of Azure, of the Hub, and here in memory."""
    write_step(tmp_path / "ckpts" / "10", {("params", "w"): np.ones(3, "f4")})
    address = StorePath("memory://orbax/run")
    put_folder(address, local(tmp_path / "ckpts"))
    done = cli("inspect", address / "10")
    assert done.code == 3
    assert "the package that reads it does not reach memory://" in done.err
    assert "copy it to a local folder, or to s3:// or gs://" in done.err
