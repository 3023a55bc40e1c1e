"""`make demo-bucket`: a run is put into a real store, averaged from there into there, and verified."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.seaweed import find_weed
from tests.conftest import write_torch_run

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_demo_runs_end_to_end(tmp_path: Path):
    """All three commands, with the store that it starts; no key shows."""
    if find_weed() is None:
        pytest.skip("SeaweedFS is not installed")
    (tmp_path / "run").mkdir()
    write_torch_run(tmp_path / "run", [10, 20, 30])
    command = [sys.executable, "-m", "scripts.demo_bucket", "--run", tmp_path / "run"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "all bytes are those of 3 checkpoints averaged anew" in done.stdout
    assert done.stdout.count("$ ema-cli") == 3


def test_without_a_run_it_says_what_to_do(tmp_path: Path):
    """And starts nothing."""
    if find_weed() is None:
        pytest.skip("SeaweedFS is not installed")
    command = [sys.executable, "-m", "scripts.demo_bucket", "--run", tmp_path / "none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "make demo" in done.stderr) == (2, True)
