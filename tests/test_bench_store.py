"""The benchmark of stores measures what it says. How fast anything is, no test asks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark.slow_link import slow_link
from scripts.seaweed import find_weed

ROOT = Path(__file__).parents[1]


def test_a_slow_link_waits_and_limits_each_connection():
    """Two connections of 1 MB/s each bring 200 kB each in 0.2 s, after a latency of 0.1 s; all bytes come."""
    server = socket.create_server(("127.0.0.1", 0))
    content = bytes(range(250)) * 800

    def serve() -> None:
        for _ in range(2):
            peer, _ = server.accept()
            threading.Thread(target=lambda peer=peer: (peer.recv(9), peer.sendall(content), peer.close())).start()

    threading.Thread(target=serve, daemon=True).start()
    with server, slow_link(server.getsockname()[:2], 0.1, 1e6) as address:
        host, _, port = address.rpartition(":")
        begun, got = time.monotonic(), list[bytes]()

        def ask() -> None:
            with socket.create_connection((host, int(port))) as peer, peer.makefile("rb") as answer:
                peer.sendall(b"something")
                got.append(answer.read())

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        elapsed = time.monotonic() - begun
    assert got == [content, content]
    assert elapsed > 0.25


@pytest.mark.slow
def test_an_average_is_measured_beside_readers_and_far_away(tmp_path: Path):
    """Each takes part in each round, and reads the same; targets have verdicts."""
    if find_weed() is None:
        pytest.skip("SeaweedFS is not installed")
    pytest.importorskip("obstore")
    script = [sys.executable, str(ROOT / "scripts" / "bench_store.py"), "--scale", "micro", "--rounds", "1"]
    options = ["--data", str(tmp_path / "data"), "--json", str(tmp_path / "store.json"), "--latency", "0.001"]
    done = subprocess.run([*script, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    links: list[dict[str, Any]] = json.loads((tmp_path / "store.json").read_text())["links"]
    assert [each["link"] for each in links] == ["near", "far"]
    assert {"ema-cli", "obstore, whole objects", "obstore, 8 MiB a request"} <= links[0]["rounds"][0].keys()
    assert not links[0]["failed"]
    assert list(links[1]["rounds"][0]) == ["ema-cli"]
    assert links[1]["limit_seconds"] == links[1]["bytes"] / 16 / 20e6
    assert done.stdout.count("x 256 MiB of memory; at most 1: met") == 2
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
