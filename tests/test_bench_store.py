"""The benchmark of stores measures what it says. How fast anything is, no test asks."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark import store_report
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
    options += ["--readers", "whole,pieces,bytes"]
    done = subprocess.run([*script, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "store.json").read_text())
    near, far = (found["rows"][link] for link in ("near", "far"))
    assert set(near["rounds"][0]["runs"]) == {"ema-cli", "whole", "pieces", "bytes"}
    assert set(near["skipped"]) == {"rclone", "aws"}
    assert set(far["rounds"][0]["runs"]) == {"ema-cli", "limit"}
    assert not near["failed"]
    assert far["rounds"][0]["runs"]["limit"]["wall"] == far["bytes_read"] / 16 / 20e6
    assert done.stdout.count("| <= 256 MiB ") == 2
    assert re.search(r"<= 1.2 x the fastest reader +\| (too noisy|[\d.]+ \((whole|pieces|bytes)\))", done.stdout)
    assert "<= 1.2 x 16 connections" in done.stdout
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_the_report_goes_between_the_marks_of_a_page():
    """What stands around it stays; and both pages have the marks once."""
    page = f"before\n{store_report.BEGIN}\nolder\n{store_report.END}\nafter {store_report.END}\n"
    filled = store_report.fill(page, "\nnew\n")
    assert filled == f"before\n{store_report.BEGIN}\n\nnew\n\n{store_report.END}\nafter {store_report.END}\n"
    for path in store_report.PAGES.values():
        assert (ROOT / path).read_text("utf-8").count(store_report.BEGIN) == 1
