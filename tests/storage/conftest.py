"""Real stores for tests: SeaweedFS on loopback, started once for each process that runs tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ema_cli.storage import listing, stores
from ema_cli.storage.names import StorePath, as_path
from tests.storage.proxy import Proxy, running_proxy

KEY, SECRET = "a-key", "a-secret-that-nobody-prints"
_PORTS = ("s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc", "master.port", "master.port.grpc")
_MORE_PORTS = ("volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc")
_PATIENCE_SECONDS = 60


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run SeaweedFS, and return host and port of its S3 interface; it has the bucket `ckpts`."""
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        pytest.skip("SeaweedFS is not installed")
    folder = tmp_path_factory.mktemp("seaweed")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in (*_PORTS, *_MORE_PORTS)]
        for listening in sockets:
            listening.bind(("127.0.0.1", 0))
        ports = [listening.getsockname()[1] for listening in sockets]
    named = [f"-{name}={port}" for name, port in zip((*_PORTS, *_MORE_PORTS), ports, strict=True)]
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *named]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-bucket=ckpts"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_for(server, ports[0], folder / "log")
        yield f"127.0.0.1:{ports[0]}"
    finally:
        server.kill()  # its end on a signal may take longer than the tests; nobody needs what it has
        server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the bucket is there."""
    obstore: Any = pytest.importorskip("obstore")
    client = obstore.store.S3Store(
        "ckpts", endpoint=f"http://127.0.0.1:{port}", access_key_id=KEY, secret_access_key=SECRET,
        client_options={"allow_http": True}, retry_config={"max_retries": 0},
    )  # fmt: skip
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            obstore.put(client, "there", b"")
            return
        except obstore.exceptions.BaseError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@pytest.fixture
def proxy(seaweed: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Return a proxy before SeaweedFS, by way of which s3:// leads there in this process."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(stores, "_clients", {})
    listing.forget_listings()
    with running_proxy(seaweed) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy
    listing.forget_listings()


@pytest.fixture
def folder(proxy: Proxy, request: pytest.FixtureRequest) -> StorePath:
    """Return the address of an empty folder in SeaweedFS."""
    address = as_path(f"s3://ckpts/{request.node.name}")
    assert isinstance(address, StorePath)
    return address
