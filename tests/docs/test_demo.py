"""`make demo` and the release of its run, as the pages show them; and what the README's first screen promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, README, ROOT, blocks


def test_the_readme_is_short():
    """At most 9 KiB: the rest is in docs/."""
    assert README.stat().st_size <= 9216


def test_the_first_commands_exist():
    """`make demo` and `make test` are in the README and in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    shown = "".join(block.text for block in blocks(README))
    for target in ("demo", "test"):
        assert f"$ make {target}\n" in shown
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
def test_the_demo_runs_end_to_end(tmp_path: Path):
    """A short demo trains, averages, compares and draws its chart; its run is released as the page shows it."""
    command = [sys.executable, ROOT / "scripts" / "demo.py", "--batches", "12", "--dir", tmp_path / "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"last checkpoint \(step 12\) +\d\.\d{4}", done.stdout)
    files, stored, dense = map(float, re.search(r"half-life 10ba" + r" +(\d\.\d{4})" * 3, done.stdout).groups())
    assert abs(stored - dense) < 0.01  # what was stored makes nearly the average of every batch
    assert files == dense  # of which each is in a file here
    assert (tmp_path / "demo" / "curve.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "set -e\n" + "".join(block.text for page in PAGES for block in blocks(page) if block.language == "sh")
    assert "scripts/release.sh" in script
    released = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert released.returncode == 0, released.stderr
    assert "all bytes are those of 12 checkpoints averaged anew" in released.stdout
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "12 checkpoints averaged" in (tmp_path / "summary.md").read_text()
